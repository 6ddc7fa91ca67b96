"""The plugin serves what is recorded of each release, and the script sees what a release has changed."""

import ast
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import hook_record
import pytest
import sglang_hooks
from fake_sglang import COMM_FUSION, PARALLEL_STATE, TABLE, V2
from lamport_rs.sglang_plugin import communicator, experts, fused, groups, hooks, minimax, push_plane

each_release = pytest.mark.parametrize("release", sorted(TABLE))
POINTS = [value for value in vars(hooks).values() if isinstance(value, hooks.Point)]


def parameters_of(function: object) -> str:
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(inspect.unwrap(function))))
    node = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return hook_record.signature_of(node)


@each_release
def test_every_function_that_the_plugin_hooks_or_calls_is_recorded_and_takes_what_it_is_given(release):
    assert len(POINTS) == 14
    for point in POINTS:
        recorded = TABLE[release]["signatures"][point.module][point.name]
        arguments = ast.parse(f"def _({recorded}): pass").body[0].args
        names = {each.arg for each in [*arguments.args, *arguments.kwonlyargs]}
        assert set(point.parameters) <= names, point.target


@each_release
def test_hooks_that_stand_for_a_function_take_what_it_takes(release):
    recorded = TABLE[release]["signatures"][COMM_FUSION]
    for name, hook in [
        ("pre_initialize_workspaces", fused.prepare),
        ("flashinfer_allreduce_residual_rmsnorm", fused.all_reduce_rms_norm),
    ]:
        assert parameters_of(hook) == f"original, {recorded[name]}"


@each_release
def test_the_communicator_has_the_signatures_of_the_class(release):
    recorded = TABLE[release]["signatures"][V2]
    for name in ("should_custom_ar", "custom_all_reduce", "capture", "close"):
        assert parameters_of(getattr(communicator.LamportAllreduce, name)) == recorded[f"CustomAllReduceV2.{name}"]


@each_release
def test_all_that_sglang_asks_of_the_communicator_is_answered_by_it_or_by_sglangs_own(release):
    asked = set(TABLE[release]["asked_of_the_communicator"])
    answered = {name for name in dir(communicator.LamportAllreduce) if not name.startswith("_")} | {"disabled"}
    assert {"capture", "custom_all_reduce", "disabled", "max_size", "obj", "should_custom_ar"} <= asked
    own = SimpleNamespace(**{name: f"own {name}" for name in asked})
    made = communicator.LamportAllreduce(None, own, 1)
    made.disabled = True  # There is no workspace to give up.
    for name in asked - answered:
        assert getattr(made, name) == f"own {name}"
    assert {name for name in answered if name in asked} == {
        "capture",
        "custom_all_reduce",
        "disabled",
        "should_custom_ar",
    }


@each_release
def test_all_that_sglang_asks_of_its_workspace_for_experts_is_answered_by_ours_or_by_its_own(release):
    recorded = TABLE[release]["signatures"]["sglang.srt.layers.flashinfer_mnnvl_cutedsl"]
    asked = {name.partition(".")[2] for name in recorded} | set(TABLE[release]["asked_of_experts_workspace"])
    ours = {name for name in vars(experts.FusedExperts) if not name.startswith("_")}
    assert ours <= asked
    made = experts.FusedExperts("", SimpleNamespace(**{name: f"own {name}" for name in asked}), 0.0, 1, 1)
    for name in asked - ours:
        assert getattr(made, name) == f"own {name}"
    for name in ours:
        signature = recorded[f"FlashInferMNNVLCuteDSLARFusion.{name}"]
        assert parameters_of(getattr(experts.FusedExperts, name)) == signature


@each_release
def test_a_group_has_what_the_plugin_asks_of_it(release):
    used = set(groups.ATTRIBUTES)
    assert used <= set(TABLE[release]["attributes"])
    sources = [
        Path(inspect.getfile(module)).read_text()
        for module in (communicator, experts, fused, groups, minimax, push_plane)
    ]
    found = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("group", "everybody")
    }
    assert found == used


@each_release
def test_sglang_decides_about_fusion_as_the_plugin_takes_it_to(release):
    # What the plugin makes needless, keeps, and relies on `pre_initialize_workspaces` not to be called without.
    assert TABLE[release]["fusion_applies"] == [
        "_is_sm90_supported or _is_sm100_supported",
        "_is_flashinfer_available",
        "not is_dp_attention_enabled()",
        "get_exec().comm.flashinfer_allreduce_fusion_backend is not None",
        "not uses_cutedsl_ar_fusion()",
        "not is_flashinfer_allreduce_unavailable()",
        "batch_size > 0",
        "batch_size <= FUSE_ALLREDUCE_MAX_BATCH_SIZE",
    ]
    assert "max_push_size=" in TABLE[release]["calls"]["register_fused_all_reduce_comm"]
    assert "residual_out=torch.empty_like(residual)" in TABLE[release]["calls"]["all_reduce_residual_norm"]
    call = TABLE[release]["calls"]["pre_initialize_workspaces"]
    assert call.startswith("pre_initialize_workspaces(max_token_num=FUSE_ALLREDUCE_MAX_BATCH_SIZE, ")


SOURCES = {
    "_version.py": "__version__ = version = '9.1.0'",
    "srt/plugins/__init__.py": "GENERAL_PLUGINS_GROUP = 'sglang.plugins'\ndef load_plugins(): ...",
    "srt/plugins/hook_registry.py": "class HookType:\n    AFTER = 'after'\nclass HookSource: ...",
    "srt/distributed/parallel_state.py": """
class GroupCoordinator:
    def __init__(self, ranks: list[int], use_custom_allreduce: bool = True):
        self.ca_comm: object = None
        self.world_size = len(ranks)
        if use_custom_allreduce and self.world_size > 1:
            CAClass = dispatch_custom_allreduce(group=ranks)
            self.ca_comm = CAClass(device=0)
    def all_reduce(self, input_):
        if self._can_use_flashinfer_allreduce(input_):
            return flashinfer_allreduce(input_)
        return self.ca_comm.custom_all_reduce(input_)
""",
    "srt/layers/layer_boundary/residual/add_norm.py": """
FUSE_ALLREDUCE_MAX_BATCH_SIZE = 4096
def flashinfer_ar_fusion_applies(batch_size: int):
    return _is_flashinfer_available and batch_size > 0
""",
    "srt/layers/layernorm.py": "def f(x):\n    return flashinfer_allreduce_residual_rmsnorm(x, eps=1.0)",
    "srt/layers/some.py": """
def first(group):
    comm = group.ca_comm
    return isinstance(comm, CustomAllReduceV2) and comm.brand_new
""",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        file = tmp_path / "site" / "sglang" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "site"


def test_the_script_reads_a_release_without_importing_it(sources):
    release, facts = sglang_hooks.facts_of(sources)
    assert release == "9.1.0"
    assert facts["signatures"][PARALLEL_STATE] == {
        "GroupCoordinator.__init__": "self, ranks, use_custom_allreduce=True",
        "GroupCoordinator.all_reduce": "self, input_",
        **dict.fromkeys(
            f"GroupCoordinator.{name}"
            for name in ("graph_capture", "destroy", "_all_reduce_out_place", "_can_use_flashinfer_allreduce")
        ),
    }
    assert set(facts["signatures"][COMM_FUSION].values()) == {None}
    assert facts["entry_points"] == "'sglang.plugins'"
    assert facts["kinds_of_hooks"] == ["AFTER"]
    assert facts["construction"] == [
        "CAClass(device=)",
        "dispatch_custom_allreduce(group=)",
        "if use_custom_allreduce and self.world_size > 1",
    ]
    assert facts["attributes"] == ["ca_comm", "world_size"]
    assert facts["dispatch"] == [
        "self._can_use_flashinfer_allreduce",
        "flashinfer_allreduce",
        "self.ca_comm.custom_all_reduce",
    ]
    assert facts["asked_of_the_communicator"] == ["brand_new", "custom_all_reduce"]
    assert facts["memory_of_the_communicator"] == ["layers.some"]
    assert facts["fusion_applies"] == ["_is_flashinfer_available", "batch_size > 0"]
    assert facts["most_fused_rows"] == "4096"
    assert facts["calls"] == {
        "flashinfer_allreduce_residual_rmsnorm": "flashinfer_allreduce_residual_rmsnorm(x, eps=1.0)",
        **dict.fromkeys(("pre_initialize_workspaces", "load_plugins", "MiniMaxM2QKRMSNorm")),
        **dict.fromkeys(("all_reduce_residual_norm", "register_fused_all_reduce_comm")),
    }
    assert "sglang" not in sys.modules


def test_the_script_names_what_differs_from_the_record_and_records(monkeypatch, capsys, tmp_path, sources):
    table = tmp_path / "hooks.json"
    table.write_text(json.dumps(TABLE))
    monkeypatch.setattr(sglang_hooks, "TABLE", table)
    monkeypatch.setattr(sys, "argv", ["sglang_hooks.py", str(sources)])
    assert sglang_hooks.main() == 1
    out = capsys.readouterr().out
    assert out.startswith(f"sglang 9.1.0, recorded {hook_record.newest(TABLE)}: ")
    assert "most_fused_rows: recorded '2048', found '4096'" in out
    monkeypatch.setattr(sys, "argv", ["sglang_hooks.py", "--record", str(sources)])
    assert sglang_hooks.main() == 0
    assert set(json.loads(table.read_text())) == {*TABLE, "9.1.0"}
