# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The sweep on a cluster
#
# **Claims** (Table 1, Appendix A). Each score of Table 1 is the mean of 15 runs. One model trains for 6 to 12 hours on
# one GPU.
#
# One GPU would therefore need weeks for the table. But the work consists of many jobs that do not depend on each
# other, so a cluster can divide it among its machines. After this page you can
#
# - run Table 1, imitation and the ablations with one command, on two cores or on a cluster;
# - say what happens when a worker, a node or a disk fails;
# - calculate what the sweep of size `paper` costs on 1, 8 and 64 GPUs, and when more GPUs no longer help.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input", "reads-results"]
import dataclasses
import json

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Markdown

from ttlib.commands import bench
from ttlib.drawing import figures
from ttlib.pipeline import keys, places, store, sweep
from ttlib.pipeline.experiments import Experiment
from ttlib.studies.jobs import jobs

figures.style()
training, planning = bench.table("training", size), bench.as_planned(bench.table("planning", size))
published = pd.read_csv(places.ROOT / "data" / "published_speed.csv")


def is_training(job) -> bool:
    """Return whether a job trains a model; all other jobs roll out."""
    return isinstance(job, Experiment)


# %% [markdown]
# ## Jobs
#
# There are two kinds of jobs. One kind trains the model of an experiment. The other kind makes a set of rollouts, and
# it needs the models of some experiments. At size `paper`, the 15 runs of a score are five models with three rollouts
# each.
#
# There is no list of finished jobs. The result of a job is a file, and the file's name contains a key of everything
# that decides its content. A job is finished if its file exists.

# %% tags=["hide-input"]
rows = {}
for s in places.SIZES:
    todo = jobs(s)
    models, rollouts = [e for e in todo if is_training(e)], [run for run in todo if not is_training(run)]
    rows[s] = {
        "models to train": len(models),
        "datasets they need": len({e.data for e in models}),
        "sets of rollouts": len(rollouts),
        "rollouts": sum(len(run.seeds) for run in rollouts),
    }
pd.DataFrame(rows).T.rename_axis("size")

# %% [markdown]
# A worker receives only the job itself: frozen configs with a few hundred numbers and names.

# %%
job = next(j for j in jobs(size) if not is_training(j) and j.method == "tto")
print(sweep.label(job))
print("needs:", ", ".join(f"model {exp.label}" for exp in job.models))
print(json.dumps(keys.plain(job))[:300], "...")

# %% [markdown]
# The job contains its dataset as a recipe: which snapshots of which policies act, for how many steps, and from which
# seed. If a worker's folder does not contain the dataset, the worker makes it.
#
# ```sh
# make sweep                                # on this machine, one process per core
# make SIZE=paper EXECUTOR=ray sweep        # on the Ray cluster at RAY_ADDRESS
# make sweep ARGS="--only hopper-medium"    # only datasets with this in their name
# make table1                               # Table 1 of the finished jobs
# ```
#
# The sweep leaves out the rollouts that a record in `data/records/` holds; `ARGS="--mode recompute"` makes them all. It
# prints how many jobs are done, running, waiting and failed. It estimates the remaining time from the jobs
# that are done, and prints it beside the first estimate, which comes from the calculation below. When the sweep is
# finished, the pages load its results.

# %% [markdown]
# ## What breaks
#
# | event | consequence |
# |---|---|
# | A worker is killed, or runs out of memory. | Another worker runs the job again, at most three times in all. In a shared folder, a training continues from its last save, at most a minute before. |
# | A node dies. | The same happens to all jobs that ran on it. |
# | A job always fails. | The rollouts that need it fail too. The sweep prints the reason and finishes the other jobs. Its exit status is 1. |
# | The sweep itself is killed. | The running jobs are lost. The next run skips the finished ones. |
# | The disk is full. | The files being written are lost, but no half file remains. The sweep starts no more jobs and prints a message. |
# | The folder contains results of another version. | The sweep names them and never reads them. Results of other settings, weights or stages of the code have other names. |
# | Results come from another version of PyTorch, NumPy, Gymnasium or MuJoCo. | Their jobs count as failed until you move the files away. |
# | Nothing answers at `RAY_ADDRESS`. | The sweep prints a message after a minute. |
#
# `make test-cluster` starts a cluster of two nodes on your machine. It kills a worker and then a node in the middle of
# a job. Then it compares the results with those of a single process: they must be equal, byte for byte.

# %% [markdown]
# ## Starting it
#
# Every node needs this repository and its environment with Ray. `make test-cluster` installs the environment, and also
# shows whether it works. There are two arrangements:
#
# - **With a shared folder.** Set `TTLIB_BUILD` to a folder that all nodes see, before Ray starts. Checkpoints, rollouts
#   and datasets are kept there, and each dataset is made once. If a node dies, another node continues its training.
# - **Without one.** Do not set `TTLIB_BUILD`. Ray sends models to the jobs that need them, and sends results back. The
#   machine that runs `make sweep` writes them. Each node makes the datasets that its jobs need.
#
# Start the sweep on a node of the cluster, for example on its head. For one machine with several GPUs, set
# `RAY_ADDRESS=local`: this starts a cluster of that machine alone, which listens on 127.0.0.1.
#
# A cluster of several machines listens on their network, and Ray has no password: whoever reaches its ports runs code as
# you. Let a firewall, or a security group of the cloud, admit the cluster's own machines alone, and log in by ssh. On a
# machine that others use too, every other user reaches the ports, those on 127.0.0.1 included.

# %% [markdown]
# ### Slurm
#
# The repository and its `.venv` must be in a home directory that all nodes mount. The script begins with the line
# `#!/bin/bash`. Then follow these lines:
#
# ```sh
# #SBATCH --nodes=8 --ntasks-per-node=1 --gpus-per-node=8
# #SBATCH --cpus-per-task=64 --time=2-00:00:00
# export TTLIB_BUILD=/scratch/$USER/ttlib
# export RAY_ADDRESS=$(hostname):6379
# here="--num-cpus=$SLURM_CPUS_PER_TASK --num-gpus=8"
# .venv/bin/ray start --head --port=6379 $here
# others=$((SLURM_NNODES - 1))
# srun --nodes=$others --ntasks=$others --exclude=$(hostname) \
#      .venv/bin/ray start --address=$RAY_ADDRESS --block $here &
# make SIZE=paper EXECUTOR=ray ARGS="--gpus 1 --cpus 8" sweep
# ```
#
# If the time runs out, submit the script again, and the sweep continues. The pages need the same `TTLIB_BUILD` to find
# the results. `--gpus 0.25` puts four jobs on one GPU. This helps where one small model does not keep a GPU busy.

# %% [markdown]
# ### A cloud
#
# Ray's launcher starts machines, and stops them when they have nothing to do. These are the main lines of its file:
#
# ```yaml
# setup_commands:
#   - git clone URL-OF-THIS-REPOSITORY ttlib || git -C ttlib pull
#   - make -C ttlib test-cluster
# head_start_ray_commands:
#   - cd ttlib && .venv/bin/ray start --head --port=6379
#       --autoscaling-config=~/ray_bootstrap_config.yaml
# worker_start_ray_commands:
#   - cd ttlib && .venv/bin/ray start --address=$RAY_HEAD_IP:6379
# ```
#
# Start the machines with `ray up cluster.yaml`, and log in with `ray attach cluster.yaml`. Then run on the head:
#
# ```sh
# export RAY_ADDRESS=localhost:6379
# make -C ttlib SIZE=paper EXECUTOR=ray ARGS="--gpus 1" sweep
# ```

# %% [markdown]
# The results end up in the head's `build` folder. Copy it before you stop the head. If the cloud takes a machine away,
# you lose the job that ran on it.
#
# We tested the sweep on a Ray cluster of two nodes, simulated on one machine. The Slurm script and the cloud file are
# untested.
#
# ## What it costs: a calculation
#
# We had no GPU for this book. The calculation below uses three kinds of numbers: rates that `make bench` measured on a
# processor, the hours that the paper prints, and a data sheet. It counts operations with {eq}`eq-operations` of
# [the page on speed](08_speed.py). A training needs them three times: once forwards and twice backwards.


# %% tags=["hide-input"]
@dataclasses.dataclass(frozen=True)
class Rates:
    """The numbers that the calculation uses."""

    training: float  # fraction of a machine's rate of large fp32 matrix products that a training reaches
    core: float  # that rate of one core, GFLOP/s
    gpu: float  # that rate of the GPU, GFLOP/s
    least: float  # hours of the paper's shortest training
    most: float  # hours of the paper's longest training


printed = published[published.kind == "gpu training"]
fp32, one_thread = training[training.dtype == "float32"], planning.query("dtype == 'float32' and threads == 1")
rates = Rates(fp32.share_of_ceiling.median(), one_thread.gflops_ceiling.median(),
              printed.gflops_ceiling.iloc[0], printed.figure.min(), printed.figure.max())  # fmt: skip
rows = [
    ("fraction of its rate that a training reaches", f"{rates.training:.2f}", "measured here, one core, fp32"),
    ("rate of one core", f"{rates.core:.0f} GFLOP/s", "measured here, fp32"),
    ("rate of the paper's GPU, a V100", f"{rates.gpu:,.0f} GFLOP/s", "data sheet, fp32"),
    ("shortest training", f"{rates.least:.0f} h", "the paper (Appendix A)"),
    ("longest training", f"{rates.most:.0f} h", "the paper (Appendix A)"),
]
pd.DataFrame(rows, columns=["quantity", "value", "source"]).style.hide(axis="index")

# %% [markdown]
# The time of a job is its number of operations divided by a rate. For trainings, which run on a GPU, we calculate this
# in two ways:
#
# - *by arithmetic*: a GPU reaches the same fraction of its data sheet's rate that a core reaches;
# - *by the paper's hours*: the printed hours belong to the largest model of profile `v1`, and smaller models need
#   proportionally less.
#
# MuJoCo simulates rollouts on one core, and the planner makes a decision between two steps. These decisions consist of
# many small operations, one after the other, so a GPU may gain little. Nobody has timed this here. We therefore charge
# rollouts as if a core did all the work.


# %%
def hours(job, largest: float, printed: float | None = None) -> float:
    """Return the hours of a job.

    printed: hours of the largest training, or None to calculate by the rates.
    """
    if not is_training(job):
        return sweep.seconds(job, rates.core) / 3600
    if printed is None:
        at_rate = rates.training * rates.gpu * 1e9
        return sweep.operations(job) / at_rate / 3600
    return printed * sweep.operations(job) / largest


# %% tags=["hide-input"]
GPUS = (1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 128, 256)
todo = jobs("paper")
trainings = [job for job in todo if is_training(job)]
largest = max(map(sweep.operations, trainings))
READINGS = {"by arithmetic": None}
READINGS |= {f"by the paper's {h:.0f} h per model": h for h in (rates.least, rates.most)}
cost = {name: {job: hours(job, largest, given) for job in todo} for name, given in READINGS.items()}
takes = pd.DataFrame({name: {n: sweep.makespan(todo, each, n) for n in GPUS} for name, each in cost.items()})
work = pd.Series({name: sum(each.values()) for name, each in cost.items()})
chain = pd.Series({name: sweep.makespan(todo, each, len(todo)) for name, each in cost.items()})
table = takes.loc[[1, 8, 64]].T.rename(columns=lambda n: f"{n} GPU{'s' * (n > 1)}")
table.assign(**{"longest chain": chain, "GPU hours": work}).style.format("{:,.0f} h")

# %% [markdown]
# The calculation uses the sweep's own schedule: a free worker takes the job after which most work remains. A worker is
# one GPU with one core. The *longest chain* is a training and the rollouts that wait for it. No number of GPUs makes
# the sweep shorter than this chain.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-cluster", "caption": "Calculated hours of the sweep of size paper against the number of GPUs. Dotted lines: the same work divided equally among the GPUs. Dashed lines: the longest chain."}, "image": {"alt": "Plot with logarithmic axes of hours against GPUs, with one curve for each way to calculate the cost. Each curve falls along its dotted line and then becomes level at its dashed line."}}
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
palette = [figures.COLOURS[name] for name in ("transformer", "third", "other")]
sns.lineplot(takes, dashes=False, markers=["o"] * len(READINGS), palette=palette, ax=axes)
for name, colour in zip(takes, palette):
    axes.plot(takes.index, work[name] / takes.index, ":", lw=1, color=colour)
    axes.axhline(chain[name], ls="--", lw=0.8, color=colour)
powers = [n for n in GPUS if n.bit_count() == 1]
axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="time of the sweep")
axes.set_xticks(powers, map(str, powers))
axes.set_yticks([6, 12, 24, 24 * 7, 24 * 30], ["6 h", "12 h", "1 day", "1 week", "1 month"])
axes.minorticks_off()
axes.set_title(f"The sweep of size paper, calculated ({size})")
plt.show()

# %% [markdown]
# ## Is the count right?
#
# The table compares the same count with the time that the trainings of this book took, at the rate of each machine.
# Some machines had bf16, which makes a training faster than its count in fp32. Some machines had other work to do.

# %% tags=["remove-input", "hide-output"] mystnb={"code_prompt_show": "Table: calculated and real minutes of each training", "code_prompt_hide": "Hide the table"}
rows = []
for exp in [job for job in jobs(size) if is_training(job)]:
    if folder := store.checkpoint_folder(exp):
        about = store.about(folder)
        calculated = sweep.seconds(exp, about["gflops_fp32"])
        rows.append([exp.label, about["seconds"] / 60, calculated / 60])
checked = pd.DataFrame(rows, columns=["model", "took (min)", "calculated (min)"])
checked = checked.set_index("model")
checked["calculated / took"] = checked["calculated (min)"] / checked["took (min)"]
checked.style.format("{:.1f}")

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
enough = sorted({next((n for n in GPUS if takes.loc[n, name] < 1.1 * chain[name]), GPUS[-1]) for name in cost})
Markdown(
    f"**The sweep costs {work.min():,.0f} to {work.max():,.0f} GPU hours. Beyond about {' to '.join(map(str, enough))} "
    "GPUs, further ones hardly help:** then the sweep takes little longer than its longest chain."
)

# %% tags=["hide-input"]
rows = {}
busy = work / takes.mul(takes.index, axis=0)
for n in (1, 8, 64):
    unit, length = ("days", 24) if n < 64 else ("hours", 1)
    least, most = takes.loc[n].min() / length, takes.loc[n].max() / length
    rows[f"{n} GPU{'s' * (n > 1)}"] = {
        "time of the sweep": f"{least:.{int(n == 8)}f} to {most:.{int(n == 8)}f} {unit}",
        "percentage of time that GPUs are busy, at least": f"{busy.loc[n].min():.0%}",
    }
pd.DataFrame(rows).T

# %% tags=["hide-input"]
long = sum(sweep.operations(job) > largest / 2 for job in trainings)
rollouts = [job for job in todo if not is_training(job)]
rolled = sum(cost["by arithmetic"][job] for job in rollouts)
last = max(trainings, key=sweep.operations)
full_rate = largest / (rates.gpu * 1e9) / 3600  # hours
ratio = checked["calculated / took"]
measured = f" Calculated times are {ratio.min():.1f} to {ratio.max():.1f} times the real ones of this book's trainings."
Markdown(
    f"The sweep has {len(trainings)} trainings, of which {long} are long, and {len(rollouts)} sets of rollouts. "
    f"The rollouts take {rolled:,.0f} core hours: {rolled / work.max():.0%} to {rolled / work.min():.0%} of all work."
    f"{measured if len(ratio) else ''}\n\n"
    f"The largest training, {last.label}, needs {largest:.1e} operations. To finish in the paper's hours, a V100 would "
    f"need {full_rate / rates.most:.0%} to {full_rate / rates.least:.0%} of its full fp32 rate. We can think of three "
    "reasons. The paper says that its hours vary with the dataset, and each of our datasets has a million steps. It "
    "may have used half precision. And its epoch may have fewer tokens than ours, which reads every start of a window "
    "once."
)

# %% [markdown]
# The calculation leaves out four things:
#
# - **Data.** Policies must roll out a dataset of a million steps before its first training begins. This takes minutes on
#   all cores. It happens once per dataset with a shared folder, and once per dataset and node without one.
# - **Several jobs on one GPU.** While MuJoCo simulates a robot, its planner's GPU is idle. `--gpus 0.25` lets other jobs
#   use it.
# - **A faster GPU.** It shortens trainings, but neither the chain of small steps of a plan nor MuJoCo. Then rollouts
#   decide.
# - **One training on several GPUs.** This would shorten the longest chain. A model of a few million weights gains little
#   from it, and this code cannot do it.
#
# ## Exercises
#
# ```{exercise} A shorter chain
# :label: ex-chain
#
# We could split the rollouts of one model further, into one job per rollout seed. How would this change the longest
# chain, and the cost of all rollouts?
# ```
#
# ````{solution-start} ex-chain
# :class: dropdown
# ````

# %%
planner = max(rollouts, key=lambda job: cost["by arithmetic"][job])
alone = dataclasses.replace(planner, seeds=planner.seeds[:1])
together, one = (sweep.seconds(job, rates.core) / 3600 for job in (planner, alone))
count = len(planner.seeds)
print(f"{sweep.label(planner)}:")
print(f"{count} rollouts in a batch take {together:.2f} h, one alone {one:.2f} h")
print(f"the longest chain takes {chain['by arithmetic']:.0f} h")
print(f"with separate jobs it gets {together - one:.2f} h shorter")
print(f"all rollouts together cost {count * one / together:.2f} times as much")

# %% [markdown]
# The chain hardly changes, because most of it is the training. Separate jobs cost more in total, because each of them
# pays the fixed costs of a batch.
#
# ````{solution-end}
# ````
#
# ```{exercise} Prices
# :label: ex-price
#
# A cloud asks 3 dollars per hour for such a GPU, and it charges for all GPUs from the start of the first job. What do 8,
# 64 and 256 GPUs cost, by arithmetic?
# ```
#
# ````{solution-start} ex-price
# :class: dropdown
# ````

# %%
for n in (8, 64, 256):
    time = takes.loc[n, "by arithmetic"]
    print(f"{n:3} GPUs: {time:5.0f} hours, {3 * n * time:7,.0f} dollars")

# %% [markdown]
# With many GPUs, you pay for idle ones. A cluster that returns idle machines pays for the work alone.
#
# ````{solution-end}
# ````
