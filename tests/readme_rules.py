"""The commands and blocks of Python of README.md and docs/, and how each runs on little data.

A command is found in a fenced block or in the running text. ``RULES`` says how it is shortened; one
that no rule covers is a failure, so that nothing new can stand there unrun.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sparse_dset.config import compose_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TIMEOUT = 240
STARTS = ("python ", "pip ", "make ", "torchrun ")
TINY = "size=[64,96]"
BRIEF = ("warmup=1", "repeats=1")
TRAINING = (
    *("data.size=[64,96]", "train.epochs=1", "train.max_steps=1", "train.batch_size=2"),
    *("train.num_workers=0", "train.progress_bar=false", "train.pruning.warmup_epochs=0"),
    "train.freeze_statistics=false",
)


# What stands in the pages


def _fenced(text: str) -> list[tuple[str, str]]:
    """The language and the content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def _in_text(text: str) -> list[str]:
    """What stands between single backticks in the running text."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", plain)]


def _without_comment(line: str) -> str:
    return " ".join(re.sub(r"\s#.*$", "", line).split())


def commands(text: str) -> list[str]:
    """Every command of a page, once, in the order of the page."""
    found = [code for code in _in_text(text) if code.startswith(STARTS)]
    for language, block in _fenced(text):
        if language in ("", "sh", "bash"):
            scripts = re.findall(r'^python -c "\n.*?"$', block, flags=re.DOTALL | re.MULTILINE)
            for script in scripts:
                block = block.replace(script, "")
            lines = [_without_comment(line) for line in block.replace("\\\n", " ").splitlines()]
            found += [*scripts, *(line for line in lines if line.startswith(STARTS))]
    return list(dict.fromkeys(found))


def python_blocks(text: str) -> list[str]:
    """Every fenced block of Python, and calls with arguments that the text names in full."""
    calls = [
        f"import {code.partition('(')[0].rpartition('.')[0]}\n{code}"
        for code in _in_text(text)
        if re.fullmatch(r"sparse_dset\.[\w.]+\(.+\)", code)
    ]
    return [block for language, block in _fenced(text) if language == "python"] + calls


def _everywhere(find: Callable[[str], list[str]]) -> list[str]:
    return list(dict.fromkeys(one for page in PAGES for one in find(page.read_text("utf-8"))))


COMMANDS, BLOCKS = _everywhere(commands), _everywhere(python_blocks)
WITH_SETTINGS = "|".join(path.stem for path in (ROOT / "conf").glob("*.yaml"))
SCRIPTS = [c for c in COMMANDS if re.match(rf"python scripts/({WITH_SETTINGS})\.py\b", c)]


# How commands are shortened


@dataclass(frozen=True)
class Rule:
    """How the commands of a pattern are run.

    Attributes:
        pattern: matches the start of a command; the first rule that does counts.
        run: gets the folder to run it in, the command and this rule's settings.
        settings: take the place of settings of the same name, or come last.
    """

    pattern: str
    run: Callable[[Path, str, tuple[str, ...]], None]
    settings: tuple[str, ...] = ()


def shortened(command: str, settings: tuple[str, ...]) -> list[str]:
    """The words of a command with placeholders and settings replaced."""
    command = command.replace("/path/to/aerial_vehicles", "aerial").replace("=/path ", "=coco ")
    words = shlex.split(re.sub(r"=/path$", "=coco", command))
    for setting in settings:
        key = setting.partition("=")[0]
        places = [i for i, word in enumerate(words) if word.partition("=")[0] == key]
        if places:
            words[places[0]] = setting
        else:
            words.append(setting)
    return words


def _call(folder: Path, words: list[str]) -> None:
    """What a process that was forked before any work does: one command, its output in a file."""
    os.chdir(folder)
    with Path("output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    torch.set_num_threads(1)
    sys.argv = words[1:]
    if words[1] == "-c":
        exec(words[2], {"__name__": "__main__"})
    elif words[1] == "-m":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[1]).parent))
        runpy.run_path(words[1], run_name="__main__")


def _in_process(folder: Path, command: str, settings: tuple[str, ...] = ()) -> str:
    """Runs a Python command in a process that has imported everything already.

    Returns:
        What it printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparse_dset.engine.train", "sparse_dset.report.page"])
    words = shortened(command, settings)
    process = context.Process(target=_call, args=(folder, words))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        pytest.fail(f"{' '.join(words)} has not ended after {TIMEOUT} s")
    printed = (folder / "output.txt").read_text()
    assert process.exitcode == 0, f"{' '.join(words)}\n{printed[-4000:]}"
    return printed


def run_python(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    _in_process(folder, command, settings)


def _alone(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """joblib's workers end with the process that started them, if that is no worker itself."""
    _in_new_process(folder, [*shlex.split(command)[1:], *settings])


def _in_new_process(folder: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _trained(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """A step of training in a new folder: one that holds a run already is refused."""
    shutil.rmtree(folder / "runs" / "new", ignore_errors=True)
    _in_process(folder, command, (*TRAINING, *settings, "train.output_dir=runs/new"))


def _prices(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """Three repeats of what is measured fifteen times; the prices go into a folder of the tests."""
    module = command.split()[-1]
    _in_process(
        folder,
        f'python -c "import functools, {module} as costs; '
        'costs.measure_costs = functools.partial(costs.measure_costs, 3); costs.main()"',
    )


def _smaller(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """A script in quotes: smaller images, the smallest of the models."""
    small = re.sub(r"\b640\b", "64", command).replace("('r18', 'r50')", "('r18',)")
    assert small != command
    assert _in_process(folder, small)


def _composed(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """There is no cluster here: the configuration with its launcher is composed and shown."""
    shown = _in_process(folder, f"{command} --cfg hydra")
    launcher = re.search(r"hydra/launcher=(\w+)", command)
    assert launcher is not None
    assert f"launcher: {launcher[1]}" in shown


def _two_processes(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """Two processes in the place of many, on one machine."""
    words = re.sub(r"--nproc_per_node=\d+", "--nproc_per_node=2", command).split()[1:]
    place = words.index("...")
    words[place : place + 1] = settings
    _in_new_process(folder, ["-m", "torch.distributed.run", "--standalone", *words])


def _ablation(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """The first arm of the command, trained for an epoch; all arms are composed before."""
    choice = re.search(r"ablation=(\w+)", command)
    plain = compose_config("ablate", [f"ablation={choice[1] if choice else 'aerial'}"])
    base = [one for one in plain["base"] if not one.startswith("data.root")]
    training = [
        one for one in TRAINING if "max_steps" not in one
    ]  # only what has ended is measured
    whole = ",".join(f'"{one}"' for one in [*base, "data.root=aerial", *training])
    _in_process(folder, command, (f"base=[{whole}]", "only=[base]", *settings))


def _printed_by_make(command: str) -> str:
    """What the targets would run, without the folders that a ``make`` within ``make`` names."""
    dry = ["make", "--dry-run", "--no-print-directory", *command.split()[1:]]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _steps_of_make(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """``make`` would set a virtual environment up: its steps are read and run one by one."""
    text = _printed_by_make(command).replace("\\\n", " ")
    steps = [line.partition("python ")[2] for line in text.splitlines() if "bin/python " in line]
    steps = [f"python {step}" for step in steps if re.match(r"scripts|-m sparse_dset\.data", step)]
    assert len(steps) == 4
    for step in steps:
        rule_of(step).run(folder, step, rule_of(step).settings)


def _recipe(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """It would run these tests, or runs before them: what it runs is looked at."""
    last = "lint-imports" if command == "make lint" else "-m pytest"
    assert last in _printed_by_make(command).splitlines()[-1]


def _installation(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """Nothing is downloaded: extras are defined, and versions are those of the Makefile."""
    extras_there = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    for word in shlex.split(command)[2:]:
        extras = re.fullmatch(r"\.\[(.+)\]", word)
        for extra in extras[1].split(",") if extras else ():
            assert extra in extras_there
        if "==" in word:
            assert word in makefile


PARALLEL = ("data=synthetic", "model=nano", "train.output_dir=runs/parallel")
COUNTED = ("size=[64,96]", "images=1", *BRIEF)
RULES = (
    Rule(r'python -c "', _smaller),
    Rule(r"python -m sparse_dset\.doctor", run_python),
    Rule(r"python -m sparse_dset\.ops\.costs", _prices),
    Rule(r"python -m sparse_dset\.data\.synthetic", lambda *given: _drawn(*given)),
    Rule(r"torchrun ", _two_processes, (*PARALLEL, *TRAINING)),
    Rule(r"python scripts/train\.py -m ", _trained, ("model=nano",)),
    # Hugging Face's network needs as many tokens as it has queries.
    Rule(r"python scripts/train\.py .*peer=", _trained, ("data.size=[128,160]",)),
    Rule(r"python scripts/train\.py ", _trained),
    Rule(r"python scripts/evaluate\.py ", run_python, ("data=synthetic", TINY)),
    Rule(r"python scripts/predict\.py ", run_python),
    Rule(r"python scripts/audit\.py ", run_python, (TINY, *BRIEF)),
    Rule(r"python scripts/scale\.py ", run_python, ("widths=[640,704]", *BRIEF)),
    Rule(r"python scripts/calibrate\.py ", run_python, (TINY,)),
    Rule(r"python scripts/report\.py ", run_python),
    Rule(
        r"python scripts/check_backbones\.py",
        run_python,
        ("--rows=rows.jsonl", "--page=page.md", "--only", "regnet"),
    ),
    Rule(r"python scripts/ablate\.py ", _ablation, ("keep_ratios=[0.3]", "bootstrap=2")),
    Rule(
        r"python scripts/benchmark\.py target=(peers|training)",
        run_python,
        ("size=[128,128]", "keep_ratios=[0.3]", *BRIEF),
    ),
    Rule(r"python scripts/benchmark\.py target=ops", run_python, ("keep_ratios=[0.3]", *BRIEF)),
    Rule(r"python scripts/benchmark\.py target=", run_python, (TINY, "keep_ratios=[0.3]", *BRIEF)),
    Rule(r"python scripts/benchmark\.py ", run_python, (*COUNTED, "keep_ratios=[0.3]")),
    Rule(r"python scripts/sweep\.py .*hydra/launcher=(slurm|ray_cluster)", _composed),
    Rule(
        r"python scripts/sweep\.py .*hydra/launcher=parallel",
        _alone,
        (*COUNTED, "execution=sparse", "evaluate=false"),
    ),
    Rule(r"python scripts/sweep\.py .*=pareto", run_python, (*COUNTED, "hydra.sweeper.n_trials=2")),
    Rule(
        r"python scripts/sweep\.py model=",
        run_python,
        ("model=nano,r18", "size=[64,64],[64,96]", *COUNTED[1:]),
    ),
    Rule(
        r"python scripts/sweep\.py ", run_python, (*COUNTED, "execution=sparse", "evaluate=false")
    ),
    Rule(r"python scripts/fuzz\.py ", run_python, ("count=20", "targets=[selection]")),
    Rule(r"make demo", _steps_of_make),
    Rule(r"make (test|sanitize|lint)", _recipe),
    Rule(r"pip install ", _installation),
)


def _drawn(folder: Path, command: str, settings: tuple[str, ...]) -> None:
    """Four scenes; the folder that the command names is there before, for what comes after it."""
    words = shlex.split(command)
    for name in ("--train", "--val"):
        words[words.index(name) + 1] = "4"
    words[words.index("--root") + 1] += "_drawn"
    _in_process(folder, shlex.join([*words, "--size", "64", "96"]))


def rule_of(command: str) -> Rule:
    found = next((rule for rule in RULES if re.match(rule.pattern, command)), None)
    if found is None:
        pytest.fail(f"{command}: say in RULES how this command is run")
    return found
