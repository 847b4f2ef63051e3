# vLLM with our plugin, which its entry point makes vLLM find. From the repository's root:
#   docker build -f deploy/docker/vllm.Dockerfile -t confidence-gateway-vllm .
FROM vllm/vllm-openai:v0.22.0
COPY pyproject.toml README.md LICENSE /src/
COPY gateway /src/gateway
COPY calibrators /src/calibrators
COPY eval /src/eval
# Without dependencies: vLLM's own versions stay, and the plugin needs nothing that vLLM does not have. The image is the
# environment, whatever its distribution thinks of installing into it.
RUN python3 -m pip install --no-cache-dir --no-deps --break-system-packages /src && rm -r /src
# A user with a name, because PyTorch's compiler asks for it.
RUN useradd --uid 10002 --create-home vllm && mkdir /models && chown vllm /models
USER 10002:10002
ENV HF_HOME=/models VLLM_NO_USAGE_STATS=1
EXPOSE 8000
ENTRYPOINT ["vllm", "serve"]
