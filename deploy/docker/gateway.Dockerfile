# The gateway alone: no torch, no model. From the repository's root:
#   docker build -f deploy/docker/gateway.Dockerfile -t confidence-gateway .
FROM python:3.13-slim AS build
WORKDIR /src
# What serving needs, by hash; then the package itself, and PostgreSQL's driver.
COPY requirements/serve.lock requirements/serve.lock
RUN python -m venv /opt/confgate \
    && /opt/confgate/bin/pip install --no-cache-dir --require-hashes -r requirements/serve.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY calibrators calibrators
COPY eval eval
RUN /opt/confgate/bin/pip install --no-cache-dir '.[cli,postgres]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home confgate
COPY --from=build /opt/confgate /opt/confgate
ENV PATH=/opt/confgate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /etc/confgate
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
# Nothing is written, so the root file system can be mounted read-only.
ENTRYPOINT ["confgate"]
CMD ["serve", "--config", "/etc/confgate/cascade.yaml"]
