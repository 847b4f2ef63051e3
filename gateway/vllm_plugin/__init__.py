"""Confidence computed inside vLLM: loaded by vLLM's own processes, never by the gateway.

    vllm serve MODEL --logits-processors gateway.vllm_plugin.processor:ConfidenceProcessor
                     --middleware gateway.vllm_plugin.middleware.ConfidenceMiddleware

With this distribution installed beside vLLM the processor is found by its entry point, and only `--middleware` is said.
That way is the faster one: for processors named on the command line vLLM 0.22 waits for every step's tokens.

Imports NumPy, PyTorch, Triton (where there is CUDA) and vLLM's public interface; nothing else of this project.
"""
