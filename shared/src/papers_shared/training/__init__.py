"""The parts of a training script, over accelerate; the loop body stands in each paper's train.py.

    run = Run(config.output, seed=config.seed, config=asdict(config), ema_decay=0.999)
    loader = run.loader(dataset, batch_size=128, transform=augment)
    model, optimizer, scheduler = run.prepare(model, optimizer, scheduler)
    for images, labels in run.steps(loader, config.epochs * loader.steps_per_epoch):
        if run.new_epoch:
            set_gradient_schedule(model, run.epoch)
        with run.accumulate():
            loss = F.cross_entropy(model(images), labels)
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(loss=loss)
        if run.epoch_done:
            scheduler.step()
            accuracy = evaluate(run.accelerator.unwrap_model(model))
            run.record(accuracy=accuracy)
            run.save(best=accuracy)
    run.finish()

The same script runs on one CPU, one GPU and several processes (``accelerate launch``, ``torchrun``;
on CPUs ``ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2``). Started again it goes on from its
newest checkpoint, on a CPU bit for bit.
"""

from papers_shared.training.loader import Loader, ResumableSampler
from papers_shared.training.objects import EMA
from papers_shared.training.run import NonFiniteLoss, Run
from papers_shared.training.seeds import seed_from

__all__ = ["EMA", "Loader", "NonFiniteLoss", "ResumableSampler", "Run", "seed_from"]
