"""The configuration of this process, while vLLM makes groups."""

current = None


def get_current_vllm_config_or_none():
    return current
