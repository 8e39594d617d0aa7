"""On a CUDA device: the kernels that run only there give what the plain way gives."""

from __future__ import annotations

import pytest
import torch

from medmvl.errors import TrainingError
from medmvl.models.head_loss import head_loss
from medmvl.training.acceleration import attention as module
from medmvl.training.run import train
from medmvl.training.run_folder import read_log
from processes import PoisonLoss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("keys", [8, 2])
def test_one_kernel_for_the_row_equals_the_loop(monkeypatch, window, keys):
    torch.manual_seed(0)
    segments = [37, 1, 130, 64]
    shapes = [(1, heads, sum(segments), 64) for heads in (8, keys, keys)]
    inputs = [torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    once, _ = module.packed_attention(None, *inputs, None, segments=segments, sliding_window=window)
    gradients = torch.autograd.grad(once.float().square().sum(), inputs)
    monkeypatch.setattr(module, "_flash", lambda query: False)
    loop, _ = module.packed_attention(None, *inputs, None, segments=segments, sliding_window=window)
    torch.testing.assert_close(once, loop, rtol=2e-2, atol=2e-2)
    for one, other in zip(gradients, torch.autograd.grad(loop.float().square().sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2)


def test_liger_gives_the_loss_in_pieces():
    pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 5000, bias=False, device="cuda")
    hidden = torch.randn(300, 64, device="cuda", requires_grad=True)
    targets = torch.randint(5000, (300,), device="cuda")
    wanted = [hidden, head.weight]
    losses = [head_loss(hidden, head, targets, 17, kernel) for kernel in ("chunked", "liger")]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    for one, other in zip(*(torch.autograd.grad(loss, wanted) for loss in losses), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_a_bf16_run_stays_near_one_in_fp32(recipe, tmp_path):
    run = {"progress": False, "device": "cuda"}
    for precision in ("fp32", "bf16"):
        train(recipe({"precision": precision, "lr": 1e-3}, run=run), tmp_path / precision)
    exact, rough = (read_log(tmp_path / name / "log.jsonl") for name in ("fp32", "bf16"))
    for a, b in zip(exact, rough, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)


def test_fp16_run_ends_if_loss_is_never_finite(recipe, tmp_path):
    stage = {"precision": "fp16", "stop_after_nans": 2, "max_steps": 40}
    with pytest.raises(TrainingError, match="2 steps in a row"):
        train(recipe(stage, run={"progress": False, "device": "cuda"}), tmp_path / "run", callbacks=[PoisonLoss()])
    assert len(read_log(tmp_path / "run" / "log.jsonl")) > 16  # the scale begins at 2 ** 16
