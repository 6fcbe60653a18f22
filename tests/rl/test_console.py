"""What a run says: a head, lines where nobody watches, a bar on a terminal."""

import io

from rich.console import Console

from rl.run.console import RunConsole, print_head

UPDATE = {
    "loss": 0.1,
    "reward": 0.5,
    "kl": 0.002,
    "entropy": 0.06,
    "seconds/rollout": 1.25,
    "throughput/images_per_second": 25.4,
}
EVALUATION = {"eval_reward": 0.25, "eval_reward_se": 0.01}


def said(*, terminal: bool, **settings: bool) -> str:
    out = io.StringIO()
    console = RunConsole(console=Console(file=out, force_terminal=terminal, width=120, soft_wrap=True), **settings)
    with console.shown():
        console.at(0, 3)
        console.log(0, 3, EVALUATION)
        for step in (1, 2):
            console.at(step, 3)
            console.log(step, 3, UPDATE if step == 1 else {"loss": 0.1, "kl": 0.003, "seconds/update": 1.0})
    return out.getvalue()


def test_without_a_terminal_every_update_is_a_line_with_a_reward_or_without():
    assert said(terminal=False).splitlines() == [
        "[0/3]  held-out reward 0.2500 ± 0.0100",
        "[1/3] reward 0.5000  kl 2.00e-03  entropy 0.0600  | rollout 1.2s",
        "[2/3] kl 3.00e-03  | update 1.0s",
    ]
    assert said(terminal=False, speaks=False) == said(terminal=True, speaks=False) == ""


def test_a_terminal_has_a_bar_and_lines_of_evaluations():
    shown = said(terminal=True)
    for part in ("held-out reward 0.2500", "2/3", "ETA", "━"):
        assert part in shown
    assert "rollout 1.2s" not in shown
    without = said(terminal=True, bar=False)  # where rollouts have a bar of their own
    assert "━" not in without
    assert "rollout 1.2s" in without


def test_the_head_names_what_it_is_about(capsys):
    print_head("quickstart.yaml", {"model": "a [model]", "folder": "runs/" + "long" * 40})
    first, model, folder = capsys.readouterr().out.splitlines()
    assert first.startswith("uniar-rl ")
    assert first.endswith(": quickstart.yaml")
    assert model == "  model    a [model]"
    assert folder.endswith("long" * 40)
