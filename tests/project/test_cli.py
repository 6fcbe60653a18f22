"""What `uniar-rl` costs to start, how it ends when nobody reads what it prints, and the names that can be imported."""

import errno
import os
import re
import resource
import subprocess
import sys

import pytest
import torch
from support.fresh_process import PROJECT, ROOT, run_fresh
from support.warm_process import run_warm

import rewards.commands
import uniar
from rl.cli import COMMANDS, main


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_had_enough_is_no_error(unbuffered, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    few = ["--train", "6", "--held-out", "6", "--questions", "0", "--edits", "0"]
    command = [sys.executable, "-m", "rl.cli", "prompts", "--output", str(tmp_path / "made"), *few]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def processor_seconds(*words: str) -> tuple[float, str]:
    """What a command costs, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "rl.cli", *words], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


@pytest.mark.parametrize(("number", "status"), [(errno.ENAMETOOLONG, 2), (errno.EACCES, 2), (errno.ENOENT, None)])
def test_what_the_system_says_of_a_name_is_a_sentence(number, status, monkeypatch, capsys):
    def refuse(_: object) -> None:
        raise OSError(number, os.strerror(number), "x" * 300)

    monkeypatch.setattr("rl.commands.compare.run", refuse)
    if status is None:
        with pytest.raises(OSError, match="No such file"):
            main(["compare", "a", "b"])
        return
    assert main(["compare", "a", "b"]) == status
    said = capsys.readouterr().err
    assert said.endswith(f"' cannot be used: {os.strerror(number)}.\n")
    assert len(said) < 200


def test_help_and_version_load_no_library():
    seconds, text = processor_seconds("--help")
    assert seconds < 0.5
    assert re.findall(r"^    (\S+)", text, flags=re.MULTILINE) == [*COMMANDS]
    assert processor_seconds("--version")[1].startswith("uniar-rl ")


@pytest.mark.parametrize("words", [*COMMANDS, *(f"rewards {name}" for name in rewards.commands.COMMANDS)])
def test_every_command_explains_itself_and_loads_no_library(words):
    seconds, text = processor_seconds(*words.split(), "--help")
    assert text.startswith(f"usage: uniar-rl {words} ")
    assert seconds < 0.5


JOINING = """
import atexit, sys, time
from torch import distributed
import rl.cli, rl.commands.plan
from uniar.errors import UserError

def join():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)

def run(arguments):
    if not distributed.is_initialized():
        join()
    if arguments.recipe == "wrong":
        raise UserError("it is wrong.")
    if arguments.recipe == "bug":
        raise RuntimeError("out of memory")

rl.commands.plan.run = run
atexit.register(lambda: print("the end, in a group:", distributed.is_initialized()))
"""


@pytest.mark.parametrize(
    ("recipe", "status", "in_group", "said"),
    [("right", 0, False, ""), ("wrong", 2, True, "uniar-rl plan: it is wrong.\n"), ("bug", 1, True, None)],
)
def test_a_command_leaves_the_process_group_that_it_joined(recipe, status, in_group, said, tmp_path):
    """Without Python's own end where it has failed, but not without what is to be done then."""
    code = f"{JOINING}\nsys.argv[1:] = ['plan', '{recipe}']\nstatus = rl.cli.main()\nprint('back')\nsys.exit(status)"
    done = run_warm("-c", code, cwd=tmp_path)
    back = "back\n" if recipe == "right" else ""
    assert (done.returncode, done.stdout) == (status, f"{back}the end, in a group: {in_group}\n")
    if said is None:
        assert done.stderr.count("Traceback") == done.stderr.count("RuntimeError: out of memory") == 1
    else:
        assert done.stderr == said


def test_a_process_whose_last_words_do_not_end_is_ended(tmp_path):
    code = f"{JOINING}\nrl.cli.LAST_WORDS = 0.5\natexit.register(time.sleep, 600)\n"
    done = run_warm("-c", f"{code}sys.argv[1:] = ['plan', 'bug']\nrl.cli.main()", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "RuntimeError: out of memory" in done.stderr


@pytest.mark.parametrize("joined", [True, False])
def test_a_command_that_is_called_ends_neither_its_callers_process_nor_group(joined, tmp_path):
    calls = """
for recipe in ("right", "wrong", "bug"):
    try:
        print(recipe, rl.cli.main(["plan", recipe]), distributed.is_initialized())
    except RuntimeError as error:
        print(error)
distributed.destroy_process_group()
"""
    done = run_warm("-c", f"{JOINING}{'join()' * joined}\n{calls}", cwd=tmp_path)
    printed = f"right 0 {joined}\nwrong 2 True\nout of memory\nthe end, in a group: False\n"
    assert (done.returncode, done.stdout) == (0, printed)
    assert done.stderr == "uniar-rl plan: it is wrong.\n"


@pytest.mark.parametrize("file", ["rewards.py", "uniar.py", "inference/__init__.py"])
def test_a_users_own_module_of_the_same_name_is_named(file, tmp_path):
    own = tmp_path / file
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "rl.train", "recipe.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"{own} is taken for uniar-rl's own package '{file.split('.')[0].split('/')[0]}'; rename it"
    )
    assert len(done.stderr.splitlines()) == 1
    library = run_fresh("import rl", tmp_path, tmp_path)
    assert library.stderr.splitlines()[-1].startswith(f"ImportError: {own} is taken for")


@pytest.mark.parametrize("file", ["rl/__init__.py", "rl.py", "rewards.py", "uniar/__init__.py", "inference.py"])
def test_another_package_that_has_a_name_of_ours_is_named_by_the_command(file, tmp_path):
    site, here = tmp_path / "site-packages", tmp_path / "here"
    here.mkdir()
    own = site / file
    own.parent.mkdir(parents=True)
    own.write_text("")
    module, _, function = PROJECT["scripts"]["uniar-rl"].partition(":")
    program = f"import sys; sys.argv = ['uniar-rl', 'plan', 'x']; import {module}; sys.exit({module}.{function}())"
    done = run_fresh(program, here, site)
    assert done.returncode == 2, done.stderr
    name = file.partition("/")[0].removesuffix(".py")
    assert f" is taken for uniar-rl's own package '{name}'; uninstall " in done.stderr
    assert str(own) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", [*uniar.__all__])
def test_the_names_of_uniars_own_package(name):
    assert getattr(uniar, name) is not None
    assert name in dir(uniar)


def test_modules_of_uniars_own_package():
    from uniar.modeling_vision_decoder import SD3Transformer2DModelWithSigLIP, UniARVisualDecoder
    from uniar.vision_encoder import BinarySphericalQuantizer, UniARVisionConfig, UniARVisionModel

    assert UniARVisualDecoder is uniar.UniARVisualDecoder
    assert UniARVisionModel.config_class is UniARVisionConfig is uniar.UniARVisionConfig
    assert issubclass(SD3Transformer2DModelWithSigLIP, torch.nn.Module)
    assert BinarySphericalQuantizer(3).basis.tolist() == [4, 2, 1]
    with pytest.raises(AttributeError, match="has no attribute 'UniAr'"):
        uniar.UniAr  # noqa: B018


def test_the_chat_template_is_that_of_a_checkpoint(golden):
    """The golden checkpoints have the reference's; ours is written anew and reads the same."""
    image, text = {"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}
    for messages in (
        [{"role": "user", "content": [image, text]}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [text, image, image]}],
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": [text]},
        ],
    ):
        for more in (True, False):
            texts = [
                golden("bsq8").processor.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=more, chat_template=template
                )
                for template in (None, uniar.CHAT_TEMPLATE)
            ]
            assert texts[0] == texts[1]
