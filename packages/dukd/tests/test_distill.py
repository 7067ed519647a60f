"""The losses: their terms, what the teacher is asked, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dukd.config import Method
from dukd.csd import CSD, WidthSlice
from dukd.distill import DUKD, Distiller, LogitsKD
from dukd.features import FeatureLoss, default_positions
from dukd.methods import METHODS
from dukd.teachers import CachedTeacher, Padded, check_pair
from dukd.upcycling import zoom_out
from papers_shared.networks.rlfn import RLFN


class Counting(nn.Module):
    """Counts the patches, by side, that it is asked for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(x), x.shape[-1]))
        return self.network(x)


def test_the_names_of_the_command_line_are_the_methods() -> None:
    assert Method.__args__ == tuple(METHODS)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "csd"])
def test_every_method_trains_the_student_alone(name, pair, patches) -> None:
    teacher, student = pair
    before = copy.deepcopy(teacher.state_dict())
    distiller = METHODS[name](teacher, student)
    loss = distiller.loss(*patches)
    loss.backward()
    assert loss.item() == pytest.approx(sum(v.item() for v in distiller.parts.values()), rel=1e-5)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_dukd_is_the_sum_of_the_papers_terms(pair, patches) -> None:
    (teacher, student), (lr, hr) = pair, patches
    distiller = DUKD(teacher, student, cells=4, probability=None, pixel_weight=5)
    distiller.loss(lr, hr)
    parts = {name: value.item() for name, value in distiller.parts.items()}
    d = zoom_out(lr, scale=2)
    with torch.no_grad():
        wanted = {
            "pixel": 5 * F.l1_loss(student(lr), hr),
            "kd": F.l1_loss(student(lr), teacher(lr)),
            "zoom_out_pixel": 5 * F.l1_loss(student(d), lr),
            "zoom_out_kd": F.l1_loss(student(d), teacher(d)),
        }
        cells = torch.cat([hr[..., i : i + 12, j : j + 12] for i in (0, 12) for j in (0, 12)])
        wanted["zoom_in"] = F.l1_loss(student(cells), teacher(cells))
    assert parts == pytest.approx({k: v.item() for k, v in wanted.items()}, rel=1e-4)


def test_both_step_modes_have_the_same_terms(pair, patches) -> None:
    found = []
    for mode in ("joint", "released"):
        distiller = DUKD(*pair, step_mode=mode, seed=4)
        groups = list(distiller.stages(*patches))
        assert len(groups) == {"joint": 1, "released": 2}[mode]
        found.append({k: v.item() for terms in groups for k, v in terms.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_released_mode_waits_for_the_step_between(pair, patches) -> None:
    distiller = DUKD(*pair, step_mode="released", probability=None)
    still = [t["zoom_out_pixel"].item() for t in distiller.stages(*patches) if "kd" not in t]
    stages = distiller.stages(*patches)
    next(stages)
    pair[1].conv_last.bias.data += 50
    assert next(stages)["zoom_out_pixel"].item() != pytest.approx(still[0], rel=1e-2)


def test_the_teacher_is_asked_once_a_size_and_never_for_a_gradient(pair, patches) -> None:
    teacher, student = Counting(pair[0]), Counting(pair[1])
    DUKD(teacher, student, cells=2).loss(*patches)
    assert teacher.calls == [(9, 12), (3, 6)]
    assert student.calls == [(9, 12), (3, 6)]
    assert not any(p.requires_grad for p in teacher.parameters())


def test_consistency_alone_asks_for_nothing_new(pair, patches) -> None:
    teacher = Counting(pair[0])
    distiller = METHODS["consistency"](teacher, pair[1], probability=1.0, operations="i")
    distiller.loss(*patches)
    assert teacher.calls == [(3, 12)]
    lr = patches[0]
    with torch.no_grad():
        wanted = F.l1_loss(1 - pair[1](1 - lr), pair[0](lr))
    assert distiller.parts["consistency"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_draws_follow_from_the_seed(pair, patches) -> None:
    distiller = DUKD(*pair)
    found = []
    for seed in (1, 2, 1):
        distiller.reseed(seed)
        found.append(distiller.loss(*patches).item())
    assert found[0] == found[2] != found[1]


def test_another_scale_of_the_teacher_is_an_error(make_edsr, patches) -> None:
    with pytest.raises(ValueError, match=r"the teacher makes .*same scale"):
        DUKD(make_edsr(scale=4), make_edsr()).loss(*patches)
    with pytest.raises(ValueError, match=r"the student makes .*same scale"):
        LogitsKD(make_edsr(), make_edsr(scale=4)).loss(*patches)
    with pytest.raises(ValueError, match="no pairs"):
        DUKD(make_edsr(), make_edsr()).loss(patches[0], patches[1][..., :23])


def test_a_teacher_that_gives_nan_is_an_error(pair, patches) -> None:
    pair[0].conv_last.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"the teacher's output has 1728 of .* NaN"):
        LogitsKD(*pair).loss(*patches)


def test_options_that_contradict_each_other_are_refused(pair) -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        DUKD(None, pair[1])
    with pytest.raises(ValueError, match="cells=0"):
        DUKD(*pair, kd_weight=0.0)
    with pytest.raises(ValueError, match="step_mode"):
        DUKD(*pair, step_mode="twice")
    with pytest.raises(ValueError, match="none was given"):
        LogitsKD(None, pair[1], kd_weight=0.0, features="SA")


# ---- features


def test_known_positions_are_those_of_the_options(make_edsr) -> None:
    assert default_positions(make_edsr(blocks=32)) == ["conv_first", 10, 21, "conv_after_body"]
    assert default_positions(Padded(RLFN(2), scale=2, minimum=15))[1] == "block_2"
    with pytest.raises(ValueError, match="no positions are known"):
        default_positions(nn.Conv2d(3, 3, 1))


def test_a_teacher_of_another_kind_teaches_its_maps(patches, make_edsr) -> None:
    teacher = Padded(RLFN(2), scale=2, minimum=15)
    distiller = METHODS["fakd"](teacher, make_edsr())
    lr = torch.rand(2, 3, 16, 16)
    distiller.loss(lr, torch.rand(2, 3, 32, 32))
    assert distiller.parts["feature"] > 0


def test_wrong_features_are_refused(pair) -> None:
    teacher, student = pair
    with pytest.raises(ValueError, match=r"no module body\.7"):
        FeatureLoss(teacher, student, transform="SA", weight=1, positions=[7])
    with pytest.raises(ValueError, match="1 maps of the student, 4 of the teacher"):
        FeatureLoss(
            teacher,
            student,
            transform="SA",
            weight=1,
            positions=[0],
            teacher_positions=["conv_first", 0, 1, 2],
        )
    with pytest.raises(ValueError, match="called 'XA'"):
        FeatureLoss(teacher, student, transform="XA", weight=1)
    loss = FeatureLoss(teacher, student, transform="CA", weight=1, positions=[0])
    lr = torch.rand(1, 3, 6, 6)
    teacher(lr), student(lr)
    with pytest.raises(ValueError, match="must agree"):
        loss(loss.take("student"), loss.take("teacher"))


def test_equal_networks_have_no_feature_loss(make_edsr, patches) -> None:
    network = make_edsr()
    for name in ("fitnet", "at", "fakd", "rkd"):
        distiller = METHODS[name](copy.deepcopy(network), network)
        distiller.loss(*patches)
        assert distiller.parts["feature"].item() == pytest.approx(0, abs=1e-6)


# ---- CSD


def test_a_slice_is_the_first_channels(make_edsr, patches) -> None:
    wide, narrow = make_edsr(channels=12), make_edsr(channels=4)
    student = WidthSlice(wide, narrow)
    narrow.load_state_dict(student.student_state())
    assert torch.allclose(student(patches[0]), narrow(patches[0]))
    assert len(list(student.parameters())) == len(list(wide.parameters()))
    with pytest.raises(ValueError, match="no slice"):
        WidthSlice(narrow, wide)


def test_csd_trains_teacher_and_slice(make_edsr, patches) -> None:
    wide = make_edsr(channels=12)
    student = WidthSlice(wide, make_edsr(channels=4))
    distiller = CSD(wide, student, features=lambda x: [F.avg_pool2d(x, 2**i) for i in range(5)])
    distiller.loss(*patches).backward()
    assert distiller.parts.keys() == {"pixel", "teacher", "contrastive"}
    assert all(p.grad is not None for p in wide.parameters())
    with pytest.raises(ValueError, match="2 or more"):
        distiller.loss(patches[0][:1], patches[1][:1])
    with pytest.raises(ValueError, match="WidthSlice"):
        CSD(wide, make_edsr(), features=lambda x: [x])


# ---- teachers


def test_kept_answers_are_the_teachers(pair) -> None:
    cached = CachedTeacher(pair[0].eval(), capacity=4)
    x = torch.rand(4, 3, 6, 6)
    with torch.no_grad():
        wanted = pair[0](x)
    for order in ([0, 1], [1, 2], [3, 0]):
        torch.testing.assert_close(cached(x[order]), wanted[order], rtol=2**-11, atol=1e-6)
    assert (cached.asked, cached.computed) == (6, 4)


def test_small_pictures_are_padded_for_networks_with_esa() -> None:
    network = RLFN(2).eval()
    padded = Padded(network, scale=2, minimum=15)
    with torch.no_grad():
        x = torch.rand(1, 3, 10, 12)
        assert padded(x).shape == (1, 3, 20, 24)
        with pytest.raises(RuntimeError):
            network(x)


def test_a_pair_is_tried_before_training(make_edsr) -> None:
    good, other = make_edsr(), make_edsr(scale=4)
    check_pair(good, good.train(), scale=2, patch=8, zoom_out=True)
    assert good.training
    with pytest.raises(ValueError, match="teacher and student must all have scale 2"):
        check_pair(other, good, scale=2, patch=8, zoom_out=False)
    with pytest.raises(ValueError, match="cannot take a picture of 8x8"):
        check_pair(RLFN(2), good, scale=2, patch=16, zoom_out=True)
    with pytest.raises(ValueError, match="multiple of 2"):
        check_pair(good, good, scale=2, patch=9, zoom_out=True)


def test_scratch_asks_no_teacher(pair, patches) -> None:
    teacher = Counting(pair[0])
    for name in ("scratch", "zoom_out_true"):
        assert isinstance(METHODS[name](teacher, pair[1]), Distiller)
        METHODS[name](teacher, pair[1]).loss(*patches)
    assert teacher.calls == []
