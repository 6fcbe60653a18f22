"""A reward that would end the process has failed, wherever it scores; it never ends anything silently."""

import asyncio
import json
import math
import sys
import threading

import pytest
from support.numbered_batch import make_batch, red_channel
from support.training_runs import small_recipe
from support.warm_process import run_warm

from rewards import Reward, RewardError, RewardSpec, RewardSuite
from rewards.remote.wire import ScoreRequest
from rewards.serving.batching import ScoringThread
from uniar.errors import UserError


class Abort(BaseException):
    """Not an Exception, as those of some test frameworks and signal handlers."""


ENDS = {
    "exit 0": (lambda: sys.exit(0), "SystemExit: 0"),
    "exit": (lambda: sys.exit(), "SystemExit"),
    "exit 3": (lambda: sys.exit(3), "SystemExit: 3"),
    "quit": (lambda: quit(), "SystemExit"),
    "exit with a sentence": (lambda: sys.exit("no key"), "SystemExit: no key"),
    "raise SystemExit": (lambda: raised(SystemExit), "SystemExit"),
    "GeneratorExit": (lambda: raised(GeneratorExit), "GeneratorExit"),
    "CancelledError": (lambda: raised(asyncio.CancelledError("by itself")), "CancelledError"),
    "StopIteration": (lambda: next(iter(())), "StopIteration"),
    "a BaseException": (lambda: raised(Abort("enough")), "Abort: enough"),
}


def raised(error):
    raise error


def suite_of(end, asynchronous, on_error):
    """Ends on sample 2."""

    class Ends(Reward):
        def score(self, batch):
            scores = [red_channel(image) for image in batch.images]
            if 2 in scores:
                end()
            return scores

    class EndsLater(Ends):
        async def score(self, batch):
            await asyncio.sleep(0)
            return super().score(batch)

    return RewardSuite([RewardSpec(EndsLater if asynchronous else Ends, name="ends", on_error=on_error, retries=0)])


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("case", ENDS)
def test_whatever_it_raises_is_its_failure(case, asynchronous):
    end, said = ENDS[case]
    suite = suite_of(end, asynchronous, "stop")
    with pytest.raises(RewardError, match=f"reward 'ends' raised .*{said if 'Cancel' not in said else ''}") as caught:
        suite.score(make_batch(4))
    assert caught.value.index == 2
    suite.close()
    skipping = suite_of(end, asynchronous, "skip")
    for _ in range(2):  # its event loop is as it was
        table = skipping.score(make_batch(4))
        assert [math.isnan(value) for value in table.values.flatten()] == [False, False, True, False]
        assert table.failures == {"ends": 1}
    skipping.close()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_a_server_goes_on_scoring(asynchronous):
    scoring = ScoringThread(suite_of(lambda: sys.exit(0), asynchronous, "stop"), 8)
    for _ in range(2):
        column = scoring.submit(ScoreRequest(make_batch(4), ("ends",))).result(30)["ends"]
        assert set(column.failures) == {2}
        assert "SystemExit: 0" in column.failures[2]
    scoring.close()


def test_only_the_users_interrupt_is_an_interrupt():
    suite = suite_of(lambda: raised(KeyboardInterrupt), False, "skip")
    with pytest.raises(KeyboardInterrupt):
        suite.score(make_batch(4))
    found = []
    beside = threading.Thread(target=lambda: found.append(suite.score(make_batch(4)).failures))
    beside.start()
    beside.join()
    assert found == [{"ends": 1}]
    later = suite_of(lambda: raised(KeyboardInterrupt), True, "skip")
    assert later.score(make_batch(4)).failures == {"ends": 1}


def test_leaving_while_it_is_built_or_loaded_is_bad_input():
    class Built(Reward):
        def __init__(self):
            sys.exit(0)

        def score(self, batch):
            return []

    class Loaded(Built):
        def __init__(self):
            pass

        def load(self):
            sys.exit(0)

    with pytest.raises(UserError, match=r"'Built' cannot be built from .*SystemExit: 0"):
        RewardSuite([RewardSpec(Built)])
    with pytest.raises(UserError, match="'Loaded' does not load: SystemExit: 0"):
        RewardSuite([RewardSpec(Loaded)]).load()


LEAVES = """\
import sys
from rewards import Reward

def leaves(prompts, images, **columns):
    sys.exit(0)

class LeavesAtTheEnd(Reward):
    def score(self, batch):
        return [0.0] * len(batch)

    def close(self):
        sys.exit(0)
"""


@pytest.mark.parametrize(("name", "code"), [("leaves", 2), ("LeavesAtTheEnd", 1)])
def test_a_run_does_not_end_as_if_it_were_done(nano_checkpoint, tmp_path, name, code):
    (tmp_path / "leaves.py").write_text(LEAVES)
    recipe = small_recipe(nano_checkpoint, tmp_path)
    recipe["rewards"] = [{"use": f"{tmp_path / 'leaves.py'}:{name}"}]
    recipe["trainer"] |= {"max_steps": 1}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = run_warm("-m", "rl.train", tmp_path / "recipe.yaml")
    assert done.returncode == code, done.stderr[-3000:]
    assert "raised SystemExit: 0" in done.stderr
    assert "Traceback" not in done.stderr
