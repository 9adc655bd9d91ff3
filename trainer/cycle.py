"""One cycle of the trainer, in its order: collect ▸ tune ▸ shrink ▸ export ▸ judge ▸ publish.

A cycle either publishes a release that is better than popularity and not worse than the one that
serves, or leaves what serves as it was and says why. It may be killed at any point: what it has
collected stays, everything else is done again by the next one.

Where several processes learn together, all of them tune; the leader alone does the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from schemas.errors import ModelRefused
from trainer.announce import announce, served, told
from trainer.collect import collect, mark_seen, unseen_clicks
from trainer.config import Plan, Settings
from trainer.export import export
from trainer.judge import judge
from trainer.keep import prune
from trainer.material import Material, gather
from trainer.network import Network
from trainer.processes import Processes
from trainer.progress import say
from trainer.publish import Release, building_folder, new_version, seal
from trainer.resume import resume_and_tune
from trainer.shrink import full_of, narrowed, shrunk_or_full
from trainer.start import save_checkpoint
from trainer.verdicts import on_record

Step = Callable[[str], None]


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """The cycle was asked to end, and did so between two steps."""


def cycle(settings: Settings, plan: Plan, stopping: Callable[[], bool], together: Processes) -> Release | None:
    """Run one cycle, alone in plan.data; the published release, or None when there was nothing to do.

    Raises every FreshrecError, ModelRefused when the judge says no; Stopped when asked to: in all processes.
    """

    def step(name: str) -> None:
        if stopping():
            raise Stopped
        say(f"▸ {name}")

    worth_it, parent = together.led(lambda: _collect(settings, plan, step))
    if not worth_it:
        return None
    material = together.each(lambda: gather(plan, parent), alike=lambda made: made and made.trained_on())
    if material is None:
        return None
    version = together.led(lambda: _begin(plan, step))
    network, fit = resume_and_tune(material, plan, plan.curves / version, together)
    return together.led(lambda: _finish(settings, plan, material, version, network, fit, step))


def _collect(settings: Settings, plan: Plan, step: Step) -> tuple[bool, Release | None]:
    """Whether there are clicks that no cycle has been through, and the served release."""
    step("collect")
    collect(settings, plan.data)
    if not unseen_clicks(settings, plan.data):
        say("nothing to do: no clicks since the last cycle")
        return False, None
    return True, served(settings)


def _begin(plan: Plan, step: Step) -> str:
    step("tune")
    return new_version(plan.releases)


def _finish(
    settings: Settings,
    plan: Plan,
    material: Material,
    version: str,
    network: Network,
    fit: dict[str, float],
    step: Step,
) -> Release:
    """Network → release that serves. Raises ModelRefused when it may not."""
    full = full_of(material, network, fit)
    if plan.shrink:
        step("shrink")
    narrow = narrowed(full, plan.shrink, plan.seed)
    step("export")
    folder = building_folder(plan.releases, version)
    try:
        with on_record(plan.data, version, material.parent_version) as metrics:
            metrics.update(fit)
            metrics.update(export(network, material.item_ids, material.settled, folder, plan.threads))
            receipt = shrunk_or_full(full, narrow, plan.shrink, folder, plan.threads, plan.shrink_loss)
            step("judge")
            candidate = material.candidate(folder)
            judgement = judge(candidate, material.serving, material.cut.judge_from, plan.threads, plan.gate)
            metrics.update(judgement.metrics)
            judgement.refuse()
    except ModelRefused:
        # The same clicks would be refused again: wait for newer ones.
        mark_seen(settings, plan.data)
        raise
    step("publish")
    save_checkpoint(network, material.item_ids, plan.checkpoint(version))
    release = seal(folder, plan.releases, version, material.parent_version, metrics, material.trained_on(), receipt)
    before = told(settings)
    message = announce(settings, before, release)
    mark_seen(settings, plan.data)
    prune(plan, before.then(message))
    return release
