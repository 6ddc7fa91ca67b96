"""The plugin serves what is recorded of each release, and the script sees what a release has changed."""

import ast
import inspect
import json
import sys
from pathlib import Path

import hook_record
import pytest
import vllm_hooks
from fake_vllm import FILES, MODULE, PACKAGE, RELEASES, TABLE, fake_vllm
from lamport_rs.vllm_plugin import (
    all_reduce,
    communicator,
    compile_cache,
    cuda_communicator,
    fused,
    fused_operation,
    fused_workspaces,
    install,
    minimax,
)

each_release = pytest.mark.parametrize("release", RELEASES)


def parameters_of(function: object) -> str:
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(inspect.unwrap(function))))
    node = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return hook_record.signature_of(node)


@each_release
def test_the_communicator_has_the_signatures_of_the_class(release):
    recorded = TABLE[release]["signatures"][MODULE]
    for name in ("should_custom_ar", "custom_all_reduce", "all_reduce", "capture", "close"):
        assert parameters_of(getattr(communicator.LamportAllreduce, name)) == recorded[f"CustomAllreduce.{name}"]


@each_release
def test_all_that_vllm_asks_of_the_communicator_is_there(release):
    served = {name for name in dir(communicator.LamportAllreduce) if not name.startswith("_")} | {"disabled"}
    of_the_class = set(TABLE[release]["signatures"][MODULE]["CustomAllreduce"].split(", "))
    kept = (
        of_the_class if of_the_class - communicator.REPLACED - {"create_shared_buffer", "free_shared_buffer"} else set()
    )
    # What vLLM's constructor sets, the stand-ins' and the releases' alike; it is passed on.
    attributes = {"mnnvl_lamport_ag_multicast_ptr"} if kept else set()
    asked = set(TABLE[release]["asked_of_the_communicator"])
    assert {"capture", "custom_all_reduce", "disabled", "should_custom_ar"} <= asked
    assert asked <= served | kept | attributes


@each_release
def test_the_hooks_are_where_the_plugin_looks_for_them(release):
    record = TABLE[release]
    assert record["construction"][1] == f"from {all_reduce.MODULE} import {all_reduce.CLASS}"
    assert set(all_reduce.METHODS) <= set(record["signatures"][MODULE]["CustomAllreduce"].split(", "))
    assert record["signatures"][cuda_communicator.FLASHINFER]["FlashInferAllReduce.should_use_fi_ar"] == (
        "self, input_tensor"
    )
    assert record["signatures"][f"{PACKAGE}.cuda_communicator"]["CudaCommunicator.checkpoint_prepare"] in (None, "self")
    assert [name for name in record["dispatch"] if name.startswith("ca_comm.")] == [
        "ca_comm.should_custom_ar",
        "ca_comm.custom_all_reduce",
    ]
    with fake_vllm(release) as module:
        install()
        assert module.CustomAllreduce.__new__ is not object.__new__


def parameters_in(record: dict, module: str, name: str) -> list[str]:
    """The names of a recorded function's parameters."""
    node = ast.parse(f"def _({record['signatures'][module][name]}): pass").body[0]
    return [each.arg for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]


@each_release
def test_the_hooks_of_fused_norms_are_where_the_plugin_looks_for_them(release):
    record = TABLE[release]
    for name in (fused_workspaces.GET, fused_workspaces.GET_FOR_QUANTISED):
        assert tuple(parameters_in(record, fused_workspaces.WORKSPACES, name)) == fused_workspaces.PARAMETERS
    assert record["fused"]["flags"] == ["fi_ar_available"]
    assert record["fused"]["operators"] == [fused.OPERATOR]
    assert set(record["fused"]["groups"]) <= {"cpu_group", "device_group"}
    # Tables hold the rule itself.
    assert "OPTIMIZATION_LEVEL_02" in record["fused"]["rule"]
    module, function = fused.HAS_FLASHINFER
    assert f"from {module} import {function}" in record["fused"]["rule"]
    assert record["signatures"][fused.CONFIGURATION] == {
        "enable_allreduce_rms_fusion": "cfg",
        fused_workspaces.CURRENT: "",
    }
    assert record["signatures"][fused_workspaces.PARALLEL_STATE] == {"get_tp_group": ""}
    assert record["signatures"][fused.HELPER] == {
        "fused_allreduce_gemma_rms_norm": "hidden_states, residual, norm",
        "_can_use_flashinfer": "hidden_states, tp_size",
    }
    users = {user: names for user, names in record["taken_from_helper"].items() if names}
    assert [user for user in users if user in fused.HELPER_USERS] != []
    assert list(users.values()) == [list(fused.TAKEN_FROM_HELPER)] * len(users)


@each_release
def test_vllm_keeps_compiled_code_as_the_plugin_expects_it(release):
    record = TABLE[release]
    assert record["signatures"][compile_cache.MODULE] == {compile_cache.FUNCTION: ""}
    assert record["compile_cache"] == {
        "order": ["envs.compile_factors", "self.configure_post_pass"],
        "groups": ["set_current_vllm_config(self.vllm_config)"],
    }
    assert record["signatures"]["vllm.config.compilation"] == {"PassConfig.flashinfer_max_size": "self, world_size"}


@each_release
def test_all_that_vllm_asks_of_flashinfer_is_there(release):
    comm = fused_operation.stand_in()
    served = set(inspect.signature(fused_operation.FusedWorkspace.run).parameters)
    calls = [asked for asked in TABLE[release]["asked_of_flashinfer"] if "(" in asked]
    for name in set(TABLE[release]["asked_of_flashinfer"]) - set(calls):
        value = comm
        for part in name.split("."):
            value = getattr(value, part)
    steering = {"fp32_acc", "launch_with_pdl", "trigger_completion_at_end", "use_oneshot"}
    for call in calls:
        name, _, keywords = call.partition("(")
        given = {keyword.rstrip("=") for keyword in keywords.rstrip(")").split(", ")}
        if name == "allreduce_fusion":
            assert given - steering <= {*served, "workspace"}, call


@each_release
def test_all_that_vllm_asks_of_a_fused_workspace_is_there(release):
    # Those of vLLM's own variables, which hold FlashInfer's workspaces alone.
    of_its_own = {"checkpoint_prepare", "checkpoint_restore", "destroy"}
    for name in set(TABLE[release]["fused"]["asked_of_a_workspace"]) - of_its_own:
        assert hasattr(fused_operation.FusedWorkspace, name)


@each_release
def test_the_hooks_of_minimax_are_where_the_plugin_looks_for_them(release):
    record = TABLE[release]
    assert tuple(parameters_in(record, minimax.WORKSPACES, minimax.GET)) == minimax.PARAMETERS
    assert tuple(parameters_in(record, minimax.NORM, minimax.FALLBACK)) == minimax.FALLBACK_PARAMETERS
    found = record["minimax"]
    assert found["bound"] == [f"{minimax.OPERATOR} = getattr(torch.ops._C, {minimax.TORCH_OPERATOR!r}, None)"]
    (called,) = (ast.parse(each).body[0].value for each in found["called"])
    ours = inspect.signature(minimax._by_the_table(lambda: None, None)).parameters
    assert len(called.args) == len(ours)
    assert [each.id for each in called.args][3:5] == list(ours)[3:5] == ["workspace", "q_size"]
    (asked,) = (ast.parse(each).body[0].value for each in found["workspace"])
    assert {keyword.arg for keyword in asked.keywords} <= set(minimax.PARAMETERS)


@each_release
def test_the_platform_answers_about_nvlink_as_the_plugin_asks(release):
    signatures = TABLE[release]["signatures"]
    assert signatures["vllm.platforms.cuda"] == {"NvmlCudaPlatform.is_fully_connected": "cls, physical_device_ids"}
    assert signatures["vllm.platforms.interface"] == {
        "Platform.is_cuda": "self",
        "Platform.visible_device_id_to_physical_device_id": "cls, device_id",
        "Platform.has_device_capability": "cls, capability, device_id=0",
    }


@each_release
def test_the_stand_ins_have_the_signatures_on_record(release):
    compared = 0
    for module, names in TABLE[release]["signatures"].items():
        file = FILES.joinpath(*module.split(".")[1:]).with_suffix(".py")
        tree = ast.parse(file.read_text()) if file.exists() else None
        for name, recorded in names.items():
            node = hook_record.definition(tree, name)
            if isinstance(node, ast.FunctionDef) and recorded is not None:
                assert hook_record.signature_of(node) == recorded, f"{module}.{name}"
                compared += 1
    assert compared >= 10


SOURCES = {
    "_version.py": "__version__ = version = '9.1.0'",
    "plugins/__init__.py": "def load_general_plugins(): ...",
    "envs.py": "VLLM_BATCH_INVARIANT: bool = False",
    "distributed/device_communicators/custom_all_reduce.py": """
class CustomAllreduce:
    def __init__(self, group: object, device: int, max_size: int = 8 << 20) -> None: ...
    def should_custom_ar(self, inp: object, stream: int = 0) -> bool: ...
    def _private(self): ...
    @staticmethod
    def free_shared_buffer(pointers): ...
""",
    "distributed/device_communicators/cuda_communicator.py": """
class CudaCommunicator:
    def __init__(self, cpu_group):
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce
        self.ca_comm = CustomAllreduce(group=cpu_group, device=0)
    def all_reduce(self, input_):
        if self.fi_ar_comm.should_use_fi_ar(input_):
            return self.fi_ar_comm.all_reduce(input_)
        ca_comm = self.ca_comm
        return ca_comm.custom_all_reduce(input_)
""",
    "compilation/passes/fusion/allreduce_rms_fusion.py": """
flashinfer_comm = None
if flashinfer_comm is not None:
    def call_trtllm_fused_allreduce_norm(allreduce_in, rms_eps: float = 1e-6):
        workspace = get_fi_ar_workspace(rank=0, group=get_tp_group().world_group, **options)
        assert workspace.is_large
        flashinfer_comm.allreduce_fusion(input=allreduce_in, pattern=flashinfer_comm.AllReduceFusionPattern.kAllReduce)
    direct_register_custom_op(op_name="fused", op_func=call_trtllm_fused_allreduce_norm)
class RocmPass:
    def __init__(self, ca_comm):
        self.ca_comm = ca_comm
        self.largest = ca_comm.effective_max_size()
""",
    "compilation/backends.py": """
class VllmBackend:
    def __call__(self, graph):
        self.key = envs.compile_factors()
        self.compile(graph)
""",
    "v1/worker/worker_base.py": """
class WorkerWrapperBase:
    def init_device(self):
        with timed(), other:
            pass
        with current(self.config):
            self.worker.init_device()
""",
    "config/vllm.py": """
def enable_allreduce_rms_fusion(cfg):
    from vllm.elsewhere import has_flashinfer
    return has_flashinfer() and not envs.VLLM_BATCH_INVARIANT
LEVEL = {"fuse": enable_allreduce_rms_fusion}
OTHER = {"fuse": False}
""",
    "config/parallel.py": """
import vllm.envs as envs
class ParallelConfig:
    def _verify(self):
        if envs.VLLM_BATCH_INVARIANT:
            self.disable_custom_all_reduce = True
""",
    "model_executor/layers/minimax_rms_norm/rms_norm_tp.py": """
_MINIMAX_FUSED_AR_RMS_QK = None
def forward(qkv, workspace):
    get_allreduce_workspace(rank=0)
    return _MINIMAX_FUSED_AR_RMS_QK(qkv, workspace)
""",
    "models/some.py": """
def first(group):
    comm = group.device_communicator.ca_comm
    return comm.world_size
def second(group):
    held = getattr(group.device_communicator, "ca_comm", None)
    other = group.other
    return held.brand_new() + other.not_asked
""",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        file = tmp_path / "site" / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "site"


def test_the_script_reads_a_release_without_importing_it(sources):
    release, facts = vllm_hooks.facts_of(sources)
    assert release == "9.1.0"
    signatures = facts["signatures"][MODULE]
    assert signatures["CustomAllreduce"] == "free_shared_buffer, should_custom_ar"
    assert signatures["CustomAllreduce.__init__"] == "self, group, device, max_size=8 << 20"
    assert signatures["CustomAllreduce.should_custom_ar"] == "self, inp, stream=0"
    assert signatures["CustomAllreduce.capture"] is None
    fusion = facts["signatures"][vllm_hooks.FUSION_PASS]
    assert fusion["call_trtllm_fused_allreduce_norm"] == "allreduce_in, rms_eps=1e-06"
    assert facts["asked_of_flashinfer"] == [
        "AllReduceFusionPattern",
        "AllReduceFusionPattern.kAllReduce",
        "allreduce_fusion",
        "allreduce_fusion(input=, pattern=)",
    ]
    assert facts["fused"] == {
        "asked_of_a_workspace": ["is_large"],
        "flags": [],
        "groups": ["world_group"],
        "operators": ["fused"],
        "rule": ["LEVEL", "from vllm.elsewhere import has_flashinfer"],
        "workspaces": ["get_fi_ar_workspace(rank=, group=, **)"],
    }
    assert facts["minimax"] == {
        "bound": ["_MINIMAX_FUSED_AR_RMS_QK = None"],
        "called": ["_MINIMAX_FUSED_AR_RMS_QK(qkv, workspace)"],
        "workspace": ["get_allreduce_workspace(rank=0)"],
    }
    assert facts["compile_cache"] == {"order": ["envs.compile_factors"], "groups": ["current(self.config)"]}
    assert facts["batch_invariance"] == {"class_attribute": False, "disables": True, "rule_asks": True}
    assert set(facts["signatures"][f"{PACKAGE}.flashinfer_all_reduce"].values()) == {None}
    assert facts["signatures"]["vllm.plugins"] == {"load_general_plugins": ""}
    assert facts["construction"] == [
        "CustomAllreduce(group=, device=)",
        f"from {MODULE} import CustomAllreduce",
    ]
    assert facts["dispatch"] == [
        "self.fi_ar_comm.should_use_fi_ar",
        "self.fi_ar_comm.all_reduce",
        "ca_comm.custom_all_reduce",
    ]
    assert facts["asked_of_the_communicator"] == ["brand_new", "custom_all_reduce", "world_size"]
    assert facts["environment"] == {"VLLM_ALLREDUCE_USE_FLASHINFER": None, "VLLM_BATCH_INVARIANT": "False"}
    assert "vllm" not in sys.modules


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vllm_hooks.py", *arguments])
    return vllm_hooks.main()


def test_the_script_names_what_differs_from_the_newest_release_and_records(monkeypatch, capsys, tmp_path, sources):
    table = tmp_path / "hooks.json"
    table.write_text(json.dumps(TABLE))
    monkeypatch.setattr(vllm_hooks, "TABLE", table)
    assert run(monkeypatch, str(sources)) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"vllm 9.1.0, recorded {hook_record.newest(TABLE)}: ")
    assert "CustomAllreduce.should_custom_ar: recorded 'self, inp', found 'self, inp, stream=0'" in out
    assert "asked_of_the_communicator: recorded [" in out
    assert run(monkeypatch, "--record", str(sources)) == 0
    assert set(json.loads(table.read_text())) == {*TABLE, "9.1.0"}
    capsys.readouterr()
    assert run(monkeypatch, str(sources)) == 0
    assert capsys.readouterr().out == "vllm 9.1.0, recorded 9.1.0: 0 differences\n"


def test_the_newest_release_is_found_by_its_numbers():
    assert hook_record.newest({"0.9.2": {}, "0.33.0": {}, "0.26.0": {}}) == "0.33.0"


def test_other_sources_are_refused(tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "_version.py").write_text("number = 1")
    with pytest.raises(SystemExit, match="assigns no __version__"):
        hook_record.release_of(tmp_path / "vllm")
