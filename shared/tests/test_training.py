"""The training loop in one process: order of data, interruption, checkpoints, log, errors."""

import importlib
import json
import random
import signal
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from papers_shared.checkpoints import load_state_dict
from papers_shared.training import EMA, NonFiniteLoss, ResumableSampler, Run, seed_from
from papers_shared.training.log import Progress
from papers_shared.training.state import refuse_differences

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_training")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        folder = tmp_path_factory.mktemp("whole")
        return folder, toy.train(folder)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batches(sampler, first, last):
    sampler.between(first, last)
    return [[tuple(key) for key in batch] for batch in sampler]


def sampler(**changes):
    return ResumableSampler(**{"size": 23, "batch_size": 4, "seed": 5, **changes})


def test_an_epoch_shows_each_sample_once_and_the_next_epoch_in_another_order():
    one = sampler(drop_last=False, size=24)
    first, second = batches(one, 0, 6), batches(one, 6, 12)
    assert sorted(i for batch in first for _, i in batch) == list(range(24))
    assert sorted(i for batch in second for _, i in batch) == list(range(24))
    assert [i for batch in first for _, i in batch] != [i for batch in second for _, i in batch]
    assert {epoch for batch in second for epoch, _ in batch} == {1}


def test_the_order_depends_on_the_seed_and_not_on_the_global_generator():
    torch.manual_seed(1)
    one = batches(sampler(), 0, 9)
    torch.manual_seed(2)
    assert batches(sampler(), 0, 9) == one
    assert batches(sampler(seed=6), 0, 9) != one


def test_a_sampler_goes_on_in_the_middle_of_an_epoch():
    assert batches(sampler(), 3, 14) == batches(sampler(), 0, 14)[3:]


@pytest.mark.parametrize("size", [23, 24])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_and_micro_batches_share_the_global_batch(size, drop_last):
    options = {"size": size, "drop_last": drop_last, "batch_size": 8}
    alone = batches(sampler(**options), 0, 5)
    parts = [
        batches(sampler(**options, rank=rank, processes=2, accumulation=2), 0, 5) for rank in (0, 1)
    ]
    for step, together in enumerate(alone):
        micro = [part[2 * step + m] for part in parts for m in (0, 1)]
        assert len({len(batch) for batch in micro}) == 1
        assert {key for batch in micro for key in batch} >= set(together)
        if len(together) % 4 == 0:
            assert sorted(key for batch in micro for key in batch) == sorted(together)


def test_an_incomplete_last_batch_is_kept_or_dropped():
    assert sampler(drop_last=True).steps_per_epoch == 5
    assert sampler(drop_last=False).steps_per_epoch == 6
    assert len(batches(sampler(drop_last=False), 5, 6)[0]) == 3


def test_batches_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match=r"batch_size 4 .* 3 processes x 1"):
        sampler(processes=3)
    with pytest.raises(ValueError, match="23 samples gives no batch of 32"):
        sampler(batch_size=32)


def test_seeds_differ_for_neighbours_and_swapped_numbers():
    seeds = {seed_from(a, b, c) for a in range(9) for b in range(9) for c in range(9)}
    assert len(seeds) == 9**3


def test_loading_leaves_the_global_generators_alone_and_workers_change_nothing(tmp_path):
    run = Run(tmp_path, seed=3)

    def draws(workers):
        loader = run.loader(
            toy.Points(20, noise=1.0), batch_size=5, transform=toy.flip_signs, workers=workers
        )
        return [points for points, _ in loader.batches(2, 7)]

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    alone = draws(0)
    after = (torch.rand(()).item(), random.random(), np.random.rand())
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    assert after == (torch.rand(()).item(), random.random(), np.random.rand())
    assert all(torch.equal(a, b) for a, b in zip(alone, draws(2), strict=True))
    assert not torch.equal(alone[0], alone[4])


def test_every_sample_is_augmented_anew_in_every_epoch(tmp_path):
    class Drawing:
        """A data set that draws from the global generators."""

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return random.random(), np.random.rand(), torch.rand(()).item()

    run = Run(tmp_path, seed=3)
    loader = run.loader(
        Drawing(), batch_size=2, transform=lambda s, g: (*s, torch.rand((), generator=g).item())
    )
    three_epochs = [torch.stack(batch) for batch in loader.batches(0, 9)]
    for draws in torch.cat(three_epochs, dim=1):
        assert len(set(draws.tolist())) == 18


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on_bit_for_bit(
    tmp_path, whole, number, status, capsys
):
    folder, weights = whole
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        toy.train(tmp_path, stop_at=17, stop_signal=number, workers=2)
    assert stop.value.code == status
    assert "after step 17; saved in" in capsys.readouterr().err
    assert signal.getsignal(number) == handler
    assert equal(toy.train(tmp_path), weights)
    assert (tmp_path / "log.jsonl").read_bytes() == (folder / "log.jsonl").read_bytes()


def test_the_log_has_each_step_once_and_means_over_the_interval(whole):
    lines = [json.loads(line) for line in (whole[0] / "log.jsonl").open()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [*range(3, 40, 3), 40]
    assert [line["step"] for line in lines if "epoch_ended" in line] == [6, 12, 18, 24, 30, 36]
    assert lines[0]["epoch"] == 0.5
    # The learning rate falls, so a mean over three steps lies above the last one's value.
    rates = [line["lr"] for line in lines if "lr" in line]
    assert all(later < earlier for earlier, later in pairwise(rates))
    final = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(final, 40)
    values = []
    for _ in range(3):
        final.step()
        cosine.step()
        values.append(cosine.get_last_lr()[0])
    assert rates[0] == pytest.approx(sum(values) / 3, rel=1e-12)


def test_what_a_killed_process_wrote_after_its_checkpoint_is_removed(tmp_path, whole):
    folder, weights = whole
    with pytest.raises(SystemExit):
        toy.train(tmp_path, stop_at=17)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 18, "epoch": 3.0, "loss": 9}\n{"step": 21, "ep')
    (tmp_path / "checkpoints" / ".step_00000020.partial").mkdir()
    assert equal(toy.train(tmp_path), weights)
    assert (tmp_path / "log.jsonl").read_bytes() == (folder / "log.jsonl").read_bytes()


def test_a_finished_run_started_again_changes_nothing(tmp_path):
    weights = toy.train(tmp_path, total_steps=12)
    log = (tmp_path / "log.jsonl").read_bytes()
    assert equal(toy.train(tmp_path, total_steps=12), weights)
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert not equal(toy.train(tmp_path, total_steps=14), weights)  # more steps are fine


def test_the_newest_checkpoints_and_the_final_weights_are_kept(whole):
    folder, weights = whole
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step_00000030", "step_00000040"]
    averaged = {k.removeprefix("ema."): v for k, v in weights.items() if k.startswith("ema.")}
    trained = {k: v for k, v in weights.items() if not k.startswith("ema.")}
    assert equal(load_state_dict(folder / "model.safetensors"), trained)
    assert equal(load_state_dict(folder / "model_ema.safetensors"), averaged)


def test_other_settings_or_other_data_are_refused_by_name(tmp_path):
    toy.train(tmp_path, total_steps=4)
    with pytest.raises(ValueError, match=r"lr=0.1 \(now 0.2\); choose another output folder"):
        toy.train(tmp_path, lr=0.2)
    with pytest.raises(ValueError, match=r"ema_decay=0.9 \(now 0.5\), seed=7 \(now 8\)"):
        toy.train(tmp_path, seed=8, ema_decay=0.5)
    with pytest.raises(ValueError, match=r"size=52 \(now 60\)"):
        toy.train(tmp_path, size=60)
    with pytest.raises(FileExistsError, match="already holds checkpoints up to step_00000004"):
        toy.train(tmp_path, resume=False)


def test_an_option_newer_than_the_checkpoint_is_refused_only_where_it_is_on(tmp_path):
    refuse_differences(tmp_path, {"lr": 0.1}, {"lr": 0.1, "fsdp": False, "init": ""})
    with pytest.raises(ValueError, match=r"fsdp=unset \(now True\)"):
        refuse_differences(tmp_path, {"lr": 0.1}, {"lr": 0.1, "fsdp": True})
    with pytest.raises(ValueError, match=r"fsdp=False \(now unset\)"):
        refuse_differences(tmp_path, {"lr": 0.1, "fsdp": False}, {"lr": 0.1})


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    one = toy.train(tmp_path / "one", dropout=0.0)
    four = toy.train(tmp_path / "four", dropout=0.0, gradient_accumulation=4)
    assert all((one[name] - four[name]).abs().max() < 1e-5 for name in one)


def test_the_average_of_weights_is_the_formula_and_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.75)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([5.0, 9.0]))
        model.running_mean.fill_(3.0)
    ema.update(model)
    assert ema.model.weight.tolist() == [2.0, 3.0]  # 0.75 * 1 + 0.25 * w
    assert ema.model.running_mean.tolist() == [3.0, 3.0]
    assert not ema.model.training
    assert not ema.model.weight.requires_grad


def one_weight(tmp_path, **options):
    """A run that trains a single weight, starting at 1."""
    run = Run(tmp_path, seed=0, **options)
    loader = run.loader(range(8), batch_size=2, shuffle=False)
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return run, loader, *run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))


def test_best_weights_are_those_of_the_largest_metric(tmp_path):
    run, loader, model, optimizer = one_weight(tmp_path)
    metrics = [0.1, 0.7, 0.7, 0.3]
    for _ in run.steps(loader, 4):
        with run.accumulate():
            run.backward(model.weight.sum())  # each update takes 0.5 off
            optimizer.step()
            optimizer.zero_grad()
        run.save(best=metrics[run.step - 1])
    assert load_state_dict(tmp_path / "model_best.safetensors")["weight"].item() == 0.0
    facts = json.loads((tmp_path / "checkpoints/step_00000004/run.json").read_text())
    assert facts["best"] == {"step": 2, "value": 0.7}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_the_run_before_the_weights_are_spoiled(tmp_path, where):
    run, loader, model, optimizer = one_weight(tmp_path)
    with pytest.raises(NonFiniteLoss, match=f"the {where}.* of step 3 is not finite; its batch"):
        for batch in run.steps(loader, 4):
            with run.accumulate():
                broken = run.step == 2
                value = model.weight.sum()
                if broken and where == "loss":
                    value = value * float("nan")
                elif broken:
                    value = value + torch.sqrt((model.weight * 0).sum())  # gradient inf * 0
                run.backward(value)
                optimizer.step()
                optimizer.zero_grad()
            assert batch is not None
    assert model.weight.item() == 0.0
    folder = tmp_path / "nonfinite" / "step_00000003"
    saved = torch.load(folder / "batch_0.pt", weights_only=True)
    assert saved["batch"].tolist() == [4, 5]
    assert load_state_dict(folder / "model.safetensors")["weight"].item() == 0.0


def test_epochs_are_announced_once_each_and_again_after_a_resumption(tmp_path):
    def loop(until):
        run, loader, model, optimizer = one_weight(tmp_path, gradient_accumulation=2)
        for _ in run.steps(loader, until):  # four updates an epoch
            begins = run.new_epoch
            with run.accumulate():
                run.backward(model.weight.sum())
                optimizer.step()
                optimizer.zero_grad()
            yield run.epoch, begins, run.epoch_done

    seen = list(loop(6))
    assert [epoch for epoch, _, _ in seen] == [0] * 8 + [1] * 4
    assert [i for i, (_, begins, _) in enumerate(seen) if begins] == [0, 8]
    assert [i for i, (_, _, done) in enumerate(seen) if done] == [7]
    resumed = list(loop(9))
    assert [epoch for epoch, _, _ in resumed] == [1] * 4 + [2] * 2
    assert [i for i, (_, begins, _) in enumerate(resumed) if begins] == [0, 4]


def test_bf16_trains_float32_weights_and_resumes(tmp_path):
    weights = toy.train(tmp_path / "whole", total_steps=12, mixed_precision="bf16")
    with pytest.raises(SystemExit):
        toy.train(tmp_path / "cut", total_steps=12, stop_at=5, mixed_precision="bf16")
    resumed = toy.train(tmp_path / "cut", total_steps=12, mixed_precision="bf16")
    assert equal(weights, resumed)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_runs_of_one_process_may_differ_in_precision(tmp_path):
    for precision in ("no", "bf16", "no"):
        run = Run(tmp_path / precision, seed=0, mixed_precision=precision)
        assert run.accelerator.mixed_precision == precision


def test_several_networks_are_saved_and_restored_in_their_order(tmp_path):
    def networks(until):
        run = Run(tmp_path, seed=0)
        generator, critic = nn.Linear(1, 1), nn.Linear(1, 2)
        steps = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (generator, critic)]
        generator, critic, *steps = run.prepare(generator, critic, *steps)
        for _ in run.steps(run.loader(range(8), batch_size=2), until):
            with run.accumulate():
                run.backward(critic(generator(torch.rand(4, 1))).sum())
                for optimizer in steps:
                    optimizer.step()
                    optimizer.zero_grad()
        return [net.state_dict() for net in (generator, critic)]

    trained = networks(3)
    assert (tmp_path / "checkpoints/step_00000003/model_1.safetensors").is_file()
    assert all(equal(a, b) for a, b in zip(networks(3), trained, strict=True))


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys):
    often = Progress(0, 10, interval=0.0)
    often.show({"loss": 0.12345})
    often.update(4, 0.5)
    assert capsys.readouterr().err.startswith("step 4/10  epoch 0.5  loss 0.1235  ")
    Progress(0, 10, interval=60.0).update(4, 0.5)
    assert capsys.readouterr().err == ""


def test_state_that_cannot_be_loaded_safely_is_not_written(tmp_path):
    run, loader, model, optimizer = one_weight(tmp_path, save_every=1)
    optimizer.param_groups[0]["origin"] = Path("a")
    with pytest.raises(ValueError, match=r"pathlib.* cannot be loaded safely"):
        for _ in run.steps(loader, 2):
            with run.accumulate():
                run.backward(model.weight.sum())
                optimizer.step()
                optimizer.zero_grad()
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_a_loop_without_accumulate_or_prepare_is_told_so(tmp_path):
    run, loader, _, _ = one_weight(tmp_path)
    with pytest.raises(RuntimeError, match=r"with run.accumulate\(\)"):
        list(run.steps(loader, 2))
    bare = Run(tmp_path, seed=0)
    with pytest.raises(RuntimeError, match=r"call run.prepare"):
        list(bare.steps(bare.loader(range(4), batch_size=2), 2))


@pytest.mark.parametrize("interval", ["log_every", "save_every"])
def test_an_interval_of_no_steps_is_refused(tmp_path, interval):
    with pytest.raises(ValueError, match=f"{interval} is at least 1 step, not 0"):
        Run(tmp_path, seed=0, **{interval: 0})


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*choose another output folder"):
        Run(tmp_path / "file" / "run", seed=0)


def test_tensorboard_gets_the_same_values(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    toy.train(tmp_path, total_steps=6, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [event.step for event in events] == [3, 6]
    logged = [line["loss"] for line in lines if "loss" in line]
    assert [event.value for event in events] == pytest.approx(logged, rel=1e-6)
