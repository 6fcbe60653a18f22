"""A server of the reward `red`, played well, and the reward `remote` that asks it: for tests of what lies between."""

from support.numbered_batch import DEADLINE

from rewards import RewardSuite

LISTING = {"rewards": [{"name": "red", "pointwise": True}], "limits": {}}


def reds(content):
    """What a good server answers to `make_batch`: the number in the prompt."""
    return [float(sample["prompt"].split()[1]) for sample in content["samples"]]


def answer_of(scores, failures=None, details=None):
    return {"scores": {"red": scores}, "failures": {"red": failures or {}}, "details": {"red": details or {}}}


def good(request):
    request.send(answer_of(reds(request.content)))


def suite_of(*servers, on_error="stop", **parameters):
    url = [server if isinstance(server, str) else server.url for server in servers]
    settings = {"deadline": DEADLINE, "timeout": 1.0, "batch_size": 2, "attempts": 3, **parameters}
    entry = {"use": "remote", "url": url[0] if len(url) == 1 else url, "reward": "red", "name": "judge", **settings}
    return RewardSuite.from_recipe([{**entry, "on_error": on_error}])
