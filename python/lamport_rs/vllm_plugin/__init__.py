"""The plugin for vLLM, which vLLM itself loads in each of its processes (entry point group `vllm.general_plugins`).

Nothing else imports it, so that it costs nothing where there is no vLLM. What it replaces is chosen by the environment
variable `LAMPORT_RS_VLLM`: `0` for nothing, or a list of parts; all of them without it.

A part whose hook a release of vLLM does not have is left to vLLM, with a warning. vLLM's modules are found by name at
run time, and adjusted when vLLM has imported them: the package does not depend on vLLM, and imports nothing of it.
"""

from __future__ import annotations

from lamport_rs.plugin_switch import PluginSwitch

SWITCH = PluginSwitch("LAMPORT_RS_VLLM", ("all_reduce", "fused", "minimax"))
"""What can be chosen: all-reduces; all-reduces fused with residual and RMSNorm, quantised or not; MiniMax's norms."""
RELEASES = ("0.26.0", "0.33.0")
"""The releases of vLLM that it was written for and checked with."""


def install() -> None:
    """Put the package in the place of vLLM's own collectives. Safe to call again.

    Raises:
        LamportError: If the environment variable names something that is no part.
    """
    from lamport_rs.vllm_plugin.compile_cache import tell_compile_cache
    from lamport_rs.vllm_plugin.cuda_communicator import adjust_cuda_communicator

    chosen = SWITCH.chosen()
    # Without any part too: other ranks may have chosen some, and would wait for this one.
    adjust_cuda_communicator()
    tell_compile_cache()
    if "all_reduce" in chosen:
        from lamport_rs.vllm_plugin.all_reduce import replace_custom_all_reduce

        replace_custom_all_reduce()
    if "fused" in chosen:
        from lamport_rs.vllm_plugin.fused import replace_fused

        replace_fused()
    if "minimax" in chosen:
        from lamport_rs.vllm_plugin.minimax import replace_minimax

        replace_minimax()
