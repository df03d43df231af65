"""The scripts and manifests in examples/ are well-formed, and the options that they name exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from ditwright.cli.info import parser as info_parser
from ditwright.cli.recipe import asked
from ditwright.recipes import RECIPES

EXAMPLES = Path(__file__).parents[1] / "examples"
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds that torchrun gives its processes to save, in place of 30
SLURM, SKY = (EXAMPLES / "slurm.sh").read_text(), yaml.safe_load((EXAMPLES / "sky.yaml").read_text())
SERVICE, JOB = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]


def command_of(script):
    """The words of torchrun in a script, what the environment gives as a number or a name."""
    words = shlex.split(script.partition("torchrun \\\n")[2].replace("\\\n", " "))
    return [re.sub(r"\$\{?\w+(:-\w+)?\}?", "8", word) for word in words]


def given():
    """What the usage of the Slurm script passes on."""
    (line,) = re.findall(r"sbatch examples/slurm.sh (imagenet .+)", SLURM)
    return shlex.split(line)


COMMANDS = {
    "slurm": [word for words in command_of(SLURM) for word in (given() if words == "$@" else [words])],
    "kubernetes": POD["containers"][0]["command"][1:],
    "sky": command_of(SKY["run"]),
}


@pytest.mark.parametrize("script", [SLURM, SKY["setup"], SKY["run"]], ids=["slurm", "sky setup", "sky run"])
def test_scripts_are_bash(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_torchrun_and_train_take_the_options(name):
    """A word that either did not know would be refused; the run folder outlives the machines."""
    args = get_args_parser().parse_args(COMMANDS[name])
    assert (args.module, args.training_script, args.training_script_args[0]) == (True, "ditwright", "train")
    assert (args.rdzv_backend, args.rdzv_endpoint.partition(":")[2]) == ("c10d", "29400")
    assert args.max_restarts > 0
    config, output = asked(args.training_script_args[1:], RECIPES, verb="train", what="", example="")
    assert config.data.source.startswith("/shared/")
    assert output.is_relative_to("/shared")


def test_the_pods_of_the_job_find_each_other():
    args = get_args_parser().parse_args(COMMANDS["kubernetes"])
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert int(args.nnodes) == JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
    assert int(args.nproc_per_node) == POD["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert SERVICE["spec"]["selector"] == {"job-name": JOB["metadata"]["name"]}
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert args.rdzv_endpoint == f"{JOB['metadata']['name']}-0.{POD['subdomain']}:29400"
    assert {mount["name"] for mount in POD["containers"][0]["volumeMounts"]} == {v["name"] for v in POD["volumes"]}
    (wait,) = POD["initContainers"]
    assert args.rdzv_endpoint.partition(":")[0] in wait["command"][-1]
    env = {one["name"]: one["value"] for one in POD["containers"][0]["env"]}
    assert POD["terminationGracePeriodSeconds"] > int(env[SHUTDOWN]) > 30


def test_slurm_starts_one_torchrun_on_each_machine():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", SLURM, re.M))
    assert options["ntasks-per-node"] == "1"
    assert options["signal"].startswith("TERM@")
    (given,) = re.findall(rf"^export {SHUTDOWN}=(\d+)$", SLURM, re.M)
    assert int(options["signal"].partition("@")[2]) > int(given) > 30
    assert '--cpus-per-task="$SLURM_CPUS_PER_TASK"' in SLURM.partition("srun ")[2]  # it inherits none


def test_what_the_comments_tell_to_run_is_understood():
    lines = re.findall(r"`ditwright info (.+?)`", "".join(path.read_text() for path in EXAMPLES.iterdir()))
    assert lines
    for line in lines:
        info_parser().parse_args(shlex.split(line))
