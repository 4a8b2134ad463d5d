"""Checkpoints that somebody else made: weights, or one sentence, and nothing is run."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import check_each, damaged, refused_or_read, tries
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch

from fcdeploy.deploy.checkpoint import load_state_dict
from fcdeploy.errors import InputError

ONE = torch.ones(1)


def saved(state: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def strange_tensors() -> dict[str, tuple[Any, str]]:
    """Tensors that PyTorch saves and loads with weights_only, and what is wrong with them."""
    return {
        "expanded": (ONE.expand(10**13), "claims 10,000,000,000,000 numbers and holds fewer"),
        "expanded twice": (ONE.expand(10**6, 10**6), "claims 1,000,000,000,000 numbers"),
        "meta": (torch.empty(5, device="meta"), "holds no numbers"),
        "sparse": (torch.eye(3).to_sparse(), "is sparse"),
        "complex": (torch.ones(3, dtype=torch.complex64), "complex"),
        "nan": (torch.tensor([float("nan")]), "NaN or infinite"),
        "infinite": (torch.tensor([1.0, float("-inf")]), "NaN or infinite"),
    }


@pytest.mark.parametrize("name", strange_tensors())
def test_tensors_that_no_network_has_are_refused_by_name(name: str, tmp_path: Path) -> None:
    tensor, says = strange_tensors()[name]
    (tmp_path / "c.pth").write_bytes(saved({"fc.weight": tensor}))
    with pytest.raises(InputError, match=r"fc\.weight .*" + says):
        load_state_dict(tmp_path / "c.pth")


def test_tensors_that_share_a_storage_are_weights(tmp_path: Path) -> None:
    """Tied weights, and a slice of a larger tensor, are what networks do have."""
    whole = torch.arange(12.0)
    (tmp_path / "c.pth").write_bytes(saved({"a": whole, "b": whole, "c": whole[3:7].reshape(2, 2)}))
    state = load_state_dict(tmp_path / "c.pth")
    assert state["c"].tolist() == [[3, 4], [5, 6]]
    assert torch.equal(state["a"], state["b"])


def test_many_views_of_one_tensor_are_no_network(tmp_path: Path) -> None:
    """Each would become a copy, were they in half precision."""
    whole = torch.ones(1000, dtype=torch.float16)
    (tmp_path / "c.pth").write_bytes(saved({f"{at}": whole for at in range(2000)}))
    with pytest.raises(InputError, match="it does not hold a network"):
        load_state_dict(tmp_path / "c.pth")


def test_packed_weights_are_not_unpacked(tmp_path: Path) -> None:
    """PyTorch reads packed members, though it never packs them: 40 KB become 40 MB, or 40 GB."""
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(10_000_000)}))) as plain,
        zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert (tmp_path / "c.pth").stat().st_size < 100_000
    assert torch.load(tmp_path / "c.pth", weights_only=True)["a"].numel() == 10_000_000
    with pytest.raises(InputError, match=r"unpacks to 40,0\d\d,\d\d\d bytes"):
        load_state_dict(tmp_path / "c.pth")


@tries(100, 8_000)
@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_a_damaged_checkpoint_is_weights_or_one_sentence(count: int, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    good = saved({"state_dict": {"a": torch.arange(12.0).reshape(3, 4), "b": ONE}}, legacy=legacy)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        refused_or_read(lambda: load_state_dict(path))

    check_each(count, damaged(good), check)


CODES = (  # opcodes of pickles that look up, call and build, and what these need
    b"cos\nsystem\n",
    b"c__builtin__\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"R",
    b"b",
    b"o",
    b"ios\nsystem\n",
    b"X\x02\0\0\0id",
    b"(",
    b"t",
    b".",
    b"\x82\x01",
    b"Q",
    b"}",
    b"s",
)


@tries(200, 8_000)
def test_no_pickle_runs_anything(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the opcodes that pickles are attacked with; os.system is never reached."""
    import os

    ran: list[Any] = []
    monkeypatch.setattr(os, "system", ran.append)
    path = tmp_path / "c.pth"

    def check(program: list[bytes]) -> None:
        body = b"\x80\x02" + b"".join(program) + b"."
        for content in (body, archive_of(body)):
            path.write_bytes(content)
            refused_or_read(lambda: load_state_dict(path))
        assert not ran

    check_each(count, st.lists(st.sampled_from(CODES), max_size=10), check)


def archive_of(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return file.getvalue()
