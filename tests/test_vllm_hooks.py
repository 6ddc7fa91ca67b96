"""The plugin serves what is recorded of each release, and the script sees what a release has changed."""

import ast
import inspect
import json
import sys
from pathlib import Path

import hook_record
import pytest
import vllm_hooks
from fake_vllm import MODULE, PACKAGE, RELEASES, TABLE, fake_vllm
from lamport_rs.vllm_plugin import all_reduce, communicator, install, neighbours

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
    served = {name for name in vars(communicator.LamportAllreduce) if not name.startswith("_")} | {"disabled"}
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
    assert record["signatures"][f"{neighbours.PACKAGE}.flashinfer_all_reduce"][
        "FlashInferAllReduce.should_use_fi_ar"
    ] == ("self, input_tensor")
    assert record["signatures"][f"{PACKAGE}.cuda_communicator"]["CudaCommunicator.checkpoint_prepare"] in (None, "self")
    assert [name for name in record["dispatch"] if name.startswith("ca_comm.")] == [
        "ca_comm.should_custom_ar",
        "ca_comm.custom_all_reduce",
    ]
    with fake_vllm(release) as module:
        install()
        assert module.CustomAllreduce.__new__ is not object.__new__


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
        flashinfer_comm.allreduce_fusion(input=allreduce_in, pattern=flashinfer_comm.AllReduceFusionPattern.kAllReduce)
class RocmPass:
    def __init__(self, ca_comm):
        self.ca_comm = ca_comm
        self.largest = ca_comm.effective_max_size()
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
        vllm_hooks.release_of(tmp_path / "vllm")
