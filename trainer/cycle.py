"""One cycle of the trainer, in its order: collect ▸ tune ▸ export ▸ judge ▸ publish.

A cycle either publishes a release that is better than popularity and not worse than the one that
serves, or leaves what serves as it was and says why.
"""

from __future__ import annotations

from collections.abc import Callable

from schemas.errors import ModelRefused
from trainer.collect import collect, mark_seen, unseen_clicks
from trainer.config import Plan, Settings
from trainer.export import export
from trainer.files import only_one
from trainer.judge import Contender, judge
from trainer.material import gather
from trainer.progress import say
from trainer.publish import Release, announce, building_folder, new_version, seal, served
from trainer.tune import save_checkpoint, start_network, tune


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """The cycle was asked to end, and did so between two steps."""


def cycle(settings: Settings, plan: Plan, stopping: Callable[[], bool]) -> Release | None:
    """Run one cycle; the published release, or None when there was nothing to do.

    Raises every FreshrecError, ModelRefused when the judge says no; Stopped when asked to.
    """

    def step(name: str) -> None:
        if stopping():
            raise Stopped
        say(f"▸ {name}")

    with only_one(plan.data):
        step("collect")
        collect(settings, plan.data)
        if not unseen_clicks(settings, plan.data):
            say("nothing to do: no clicks since the last cycle")
            return None
        material = gather(plan, served(settings))
        if material is None:
            return None
        items, events, cut = material.vocabulary.ids, material.events, material.cut

        step("tune")
        version = new_version(plan.releases)
        network = start_network(material.checkpoint, material.settled, len(items), plan.seed)
        fit = tune(network, events, cut, material.learned_until, plan, plan.curves / version)

        step("export")
        folder = building_folder(plan.releases, version)
        parity = export(network, items, material.settled, folder, plan.threads)

        step("judge")
        new = Contender(folder, len(items))
        try:
            metrics = judge(new, material.serving, events, cut.judge_from, plan.threads)
        except ModelRefused:
            # The same clicks would be refused again: wait for newer ones.
            mark_seen(settings, plan.data)
            raise

        step("publish")
        save_checkpoint(network, plan.checkpoint(version))
        release = seal(
            folder,
            plan.releases,
            version,
            material.parent_version,
            metrics={**metrics, **parity, **fit},
            trained_on=material.trained_on(),
        )
        announce(settings, release)
        mark_seen(settings, plan.data)
        return release
