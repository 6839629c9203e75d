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
# **Claims** (Table 1, Appendix A). A score of Table 1 is the mean of 15 runs; one model is trained for 6 to 12 hours on
# one GPU. So the paper's table is weeks of one GPU, made of jobs that need not know of each other.
#
# After this page you can
#
# - run Table 1, imitation and the ablations on two cores, or on a cluster, with the same command;
# - say what happens when a worker, a node or a disk fails in the middle of it;
# - calculate what the sweep of size `paper` costs on 1, 8 and 64 GPUs, and where more of them stop helping.

# %% tags=["parameters"]
size = "laptop"

# %% tags=["hide-input", "reads-results"]
import dataclasses
import json

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from ttlib import checkpoint
from ttlib.drawing import figures
from ttlib.pipeline import keys, places, results, store, sweep
from ttlib.pipeline.experiments import Experiment

training, planning = (results.bench(name, size) for name in ("training", "planning"))
published = pd.read_csv(places.ROOT / "data" / "published_speed.csv")

# %% [markdown]
# ## Jobs
#
# A job is what it makes. It is either an experiment, whose checkpoint is wanted, or a set of rollouts, which needs the
# checkpoints of its models; at size `paper` the 15 runs of a score are five models with three rollouts each. Whether a
# job is finished is not written down anywhere: its file is there, under a name that holds the key of all that decides
# its content, or it is not.

# %% tags=["hide-input"]
rows = []
for s in places.SIZES:
    todo = sweep.jobs(s)
    models = [job for job in todo if isinstance(job, Experiment)]
    rollouts = [job for job in todo if not isinstance(job, Experiment)]
    rows.append({"size": s, "models to train": len(models), "datasets they need": len({e.data for e in models}),
                 "sets of rollouts": len(rollouts), "rollouts": sum(len(job.seeds) for job in rollouts)})  # fmt: skip
pd.DataFrame(rows).set_index("size")

# %% [markdown]
# All that a worker is told of a job is the job: frozen configs, a few hundred numbers and names.

# %%
job = next(job for job in sweep.jobs(size) if not isinstance(job, Experiment) and job.method == "tto")
print(sweep.label(job))
print("needs:", ", ".join(f"model {exp.label}" for exp in job.models))
print(json.dumps(keys.plain(job))[:300], "...")

# %% [markdown]
# The dataset is in it as a recipe: which snapshots of which policies act for how many steps from which seed. A worker
# whose folder does not hold that dataset makes it.
#
# ```sh
# make sweep                                      # on this machine, a process for each core
# make SIZE=paper EXECUTOR=ray sweep              # on the Ray cluster whose head is at RAY_ADDRESS
# make sweep ARGS="--only hopper-medium"          # the datasets whose names contain that
# make table1                                     # Table 1 of what is finished, and what is missing
# ```
#
# A line tells how many jobs are done, running, waiting and failed, and how long the rest takes, by what the jobs took
# so far, beside the first estimate, which comes from the calculation below. When all is finished, pages 11 to 13 load
# what the sweep left and compute nothing that it has computed.
#
# ## What breaks
#
# | what happens | what it costs |
# |---|---|
# | a worker is killed, or runs out of memory | its job, which is run again by another worker, three times at most; a training goes on where it was last saved, a minute ago, if the folder is shared |
# | a node dies | the jobs that ran on it, likewise |
# | a job always fails | itself and the rollouts that need it; the reason is printed, the others finish, the exit status is 1 |
# | the sweep itself is killed | what was running; run again, it skips what is finished |
# | the disk is full | what was being written; no more jobs are begun, no half file stays, and a message says so |
# | results of another version lie in the folder | nothing: they are named and never read. A result of other settings, weights or stages of the code has another name; one that another version of PyTorch, NumPy, Gymnasium or MuJoCo made counts as failed until you move it away |
# | nothing answers at RAY_ADDRESS | a minute, then a message |
#
# `make test-cluster` starts a cluster of two nodes on your machine, kills a worker and then a node in the middle of a
# job, and compares what comes out with what a single process makes: byte for byte the same.
#
# ## Starting it
#
# Every node needs this repository and its environment with Ray; `make test-cluster` installs that, and tells whether
# it works there. Two arrangements:
#
# - **A shared folder.** Export `TTLIB_BUILD=/a/folder/that/all/nodes/see` before Ray is started. Checkpoints, rollouts
#   and datasets are kept there, each dataset is made once, and a training whose node dies goes on on another.
# - **None.** Leave `TTLIB_BUILD` alone. Models are handed to whoever needs them and results come back through Ray; the
#   machine that runs `make sweep` writes them. Each node makes the datasets that its jobs need.
#
# Start the sweep on a node of the cluster, such as its head. On one machine with several GPUs `RAY_ADDRESS=local` is a
# cluster of that machine alone.
#
# ### Slurm
#
# The repository and its `.venv` lie in a home directory that all nodes mount. The script begins with the line
# `#!/bin/bash`, and then:
#
# ```sh
# #SBATCH --nodes=8 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --time=2-00:00:00
# export TTLIB_BUILD=/scratch/$USER/ttlib
# export RAY_ADDRESS=$(hostname):6379
# .venv/bin/ray start --head --port=6379 --num-cpus=$SLURM_CPUS_PER_TASK --num-gpus=8
# others=$((SLURM_NNODES - 1))
# srun --nodes=$others --ntasks=$others --exclude=$(hostname) .venv/bin/ray start --address=$RAY_ADDRESS --block \
#      --num-cpus=$SLURM_CPUS_PER_TASK --num-gpus=8 &
# make SIZE=paper EXECUTOR=ray ARGS="--gpus 1 --cpus 8" sweep
# ```
#
# If the time runs out, submit it again: it goes on. The pages need the same `TTLIB_BUILD` to find the results. `--gpus 0.25` puts four jobs on a GPU, which pays where models
# are so small that one alone leaves it idle.
#
# ### A cloud
#
# Ray's launcher starts machines and stops them when they have nothing to do. The heart of its file:
#
# ```yaml
# setup_commands:
#   - git clone URL-OF-THIS-REPOSITORY ttlib || git -C ttlib pull
#   - make -C ttlib test-cluster
# head_start_ray_commands:
#   - cd ttlib && .venv/bin/ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml
# worker_start_ray_commands:
#   - cd ttlib && .venv/bin/ray start --address=$RAY_HEAD_IP:6379
# ```
#
# Then `ray up cluster.yaml`, `ray attach cluster.yaml`, and on the head
# `RAY_ADDRESS=localhost:6379 make -C ttlib SIZE=paper EXECUTOR=ray ARGS="--gpus 1" sweep`. Results end in the head's
# `build` folder: copy it home before the head goes. Machines that may be taken away at any time cost a job each when
# they are. Neither of these two scripts was run by us: we had one machine, on which the cluster was real and its nodes
# were not.
#
# ## What it costs, on paper
#
# No GPU was at hand for this book. What follows is arithmetic from three kinds of number: rates that `make bench`
# measured on a processor, the hours that the paper prints, and a data sheet.
#
# Operations are counted as in {eq}`eq-operations` of page 08, three times for a training, forwards and twice backwards.


# %% tags=["hide-input"]
@dataclasses.dataclass(frozen=True)
class Rates:
    """What the calculation goes by."""

    training: float  # share of a machine's rate of large fp32 matrix products that a training reaches
    core: float  # that rate of one core, GFLOP/s
    gpu: float  # of the GPU, GFLOP/s
    least: float  # hours of the paper's trainings
    most: float


hours_printed = published[published.kind == "gpu training"]
rates = Rates(
    training=training[training.dtype == "float32"].share_of_ceiling.median(),
    core=planning[(planning.dtype == "float32") & (planning.threads == 1)].gflops_ceiling.median(),
    gpu=hours_printed.gflops_ceiling.iloc[0], least=hours_printed.figure.min(), most=hours_printed.figure.max(),
)  # fmt: skip
pd.DataFrame(
    [
        ("share of its rate that a training reaches", f"{rates.training:.2f}", "measured here, one core, fp32"),
        ("rate of one core", f"{rates.core:.0f} GFLOP/s", "measured here, fp32"),
        ("rate of the paper's GPU, a V100", f"{rates.gpu:,.0f} GFLOP/s", "data sheet, fp32"),
        ("a training takes at least", f"{rates.least:.0f} h", "published (Appendix A)"),
        ("a training takes at most", f"{rates.most:.0f} h", "published (Appendix A)"),
    ],
    columns=["what", "value", "origin"],
).style.hide(axis="index")


# %% [markdown]
# A job costs its operations over a rate. A training runs on a GPU: by *arithmetic* at the share of the data sheet's rate
# that a core reaches of its own, or *by the paper's hours*, which belong to the largest model of profile `v1`, and of
# which smaller ones take their share. Rollouts are simulated by MuJoCo on one core, between the decisions of a planner
# whose many small steps a GPU runs through no faster than it is told to, one after the other. Nobody has timed that
# here, so rollouts are charged as if a core did them alone.


# %%
def hours(job, largest: float, printed: float | None = None) -> float:
    """Of one job.  printed: hours of the largest training, or None to go by the rates."""
    if not isinstance(job, Experiment):
        return sweep.seconds(job, rates.core) / 3600
    if printed is None:
        return sweep.operations(job) / (rates.training * rates.gpu * 1e9) / 3600
    return printed * sweep.operations(job) / largest


todo = sweep.jobs("paper")
trainings = [job for job in todo if isinstance(job, Experiment)]
largest = max(map(sweep.operations, trainings))
READINGS = {"by arithmetic": None, f"the paper's {rates.least:.0f} h a model": rates.least, f"the paper's {rates.most:.0f} h a model": rates.most}
cost = {name: {job: hours(job, largest, printed) for job in todo} for name, printed in READINGS.items()}

# %% tags=["hide-input"]
GPUS = (1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 128, 256)
takes = pd.DataFrame({name: {n: sweep.makespan(todo, each, n) for n in GPUS} for name, each in cost.items()})
work = pd.Series({name: sum(each.values()) for name, each in cost.items()})
floor = pd.Series({name: sweep.makespan(todo, each, len(todo)) for name, each in cost.items()})
table = takes.loc[[1, 8, 64]].T.rename(columns=lambda n: f"{n} GPU{'s' * (n > 1)}")
table.assign(**{"longest chain": floor, "GPU hours": work}).style.format("{:,.0f} h")

# %% [markdown]
# The schedule is the sweep's own: whoever is free takes the job after which most remains to be done. A worker is one
# GPU with a core.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-cluster", "caption": "Hours of the sweep of size paper against the number of GPUs, by calculation. Dotted: the same work shared without loss. Dashed: the longest chain, a training and the rollouts that wait for it, which no number of GPUs shortens."}, "image": {"alt": "Log-log plot of hours against GPUs for three readings of the cost, each falling along its dotted line and then levelling off at its dashed line."}}
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for (name, column), colour in zip(takes.items(), ("transformer", "third", "other")):
    axes.loglog(takes.index, column, "o-", ms=4, color=figures.COLOURS[colour], label=name)
    axes.loglog(takes.index, work[name] / takes.index, ":", lw=1, color=figures.COLOURS[colour])
    axes.axhline(floor[name], ls="--", lw=0.8, color=figures.COLOURS[colour])
axes.set_xticks(ticks := [n for n in GPUS if n.bit_count() == 1], map(str, ticks))
axes.minorticks_off()
days = [6, 12, 24, 24 * 7, 24 * 30]
axes.set_yticks(days, ["6 h", "12 h", "1 day", "1 week", "1 month"])
axes.set(xlabel="GPUs", ylabel="time of the sweep", title=f"The sweep of size paper, calculated ({size})")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Is the count right?
#
# The same count, at the rate that each machine had, against what the trainings behind this book took. (Some of these
# machines had bf16, which makes a training faster than its count in fp32, and some had other work to do.)

# %% tags=["hide-input"]
rows = []
for exp in [job for job in sweep.jobs(size) if isinstance(job, Experiment)]:
    if folder := store.checkpoint_folder(exp):
        about = checkpoint.about(folder)
        rows.append({"model": exp.label, "took (min)": about["seconds"] / 60,
                     "calculated (min)": sweep.seconds(exp, about["gflops_fp32"]) / 60})  # fmt: skip
checked = pd.DataFrame(rows, columns=["model", "took (min)", "calculated (min)"]).set_index("model")
checked["calculated / took"] = checked["calculated (min)"] / checked["took (min)"]
checked.style.format("{:.1f}")

# %% [markdown]
# ## What we saw

# %% tags=["hide-input"]
share = {n: work / (takes.loc[n] * n) for n in GPUS}
enough = {next((n for n in GPUS if takes.loc[n, name] < 1.1 * floor[name]), GPUS[-1]) for name in cost}
last = max(trainings, key=sweep.operations)
long = sum(sweep.operations(job) > largest / 2 for job in trainings)
flat_out = largest / (rates.gpu * 1e9) / 3600
rolled = [job for job in todo if not isinstance(job, Experiment)]
core_hours = sum(cost["by arithmetic"][job] for job in rolled)
ratio = checked["calculated / took"]
said = [
    f"The sweep is {len(trainings)} trainings, {long} of them long, and {len(rolled)} sets of rollouts.",
    f"It costs {work.min():,.0f} to {work.max():,.0f} GPU hours: {takes.loc[1].min() / 24:.0f} to {takes.loc[1].max() / 24:.0f} days of one GPU, "
    f"{takes.loc[8].min() / 24:.1f} to {takes.loc[8].max() / 24:.1f} days of eight, {takes.loc[64].min():.0f} to {takes.loc[64].max():.0f} hours of sixty-four.",
    f"Eight are kept busy for {share[8].min():.0%} of the time, sixty-four for {share[64].min():.0%}. From about {' or '.join(map(str, sorted(enough)))} GPUs on "
    "the sweep takes hardly longer than its longest chain, one training and its rollouts: there are no more long trainings to begin.",
    f"Rollouts are {core_hours:,.0f} hours of a core, {core_hours / work.max():.0%} to {core_hours / work.min():.0%} of the whole.",
    f"The largest training, {last.label}, needs {largest:.1e} operations. Done in the hours that the paper prints, that would be {flat_out / rates.most:.0%} to "
    f"{flat_out / rates.least:.0%} of the full rate of its GPU in fp32. They vary with the dataset, it says, and ours have "
    f"a million steps each; it may also have used half precision, or have read fewer tokens than our epoch, every start of a window once.",
]  # fmt: skip
if len(ratio):
    said.append(f"Calculated and real times of this book's trainings differ by factors from {ratio.min():.1f} to {ratio.max():.1f}.")
Markdown(" ".join(said))

# %% [markdown]
# What the calculation leaves out, and what it would change:
#
# - **Data.** A dataset of a million steps is rolled out by its policies before the first training can begin: minutes, on
#   as many cores as there are. With a shared folder that happens once for each dataset, without one once for each
#   dataset and node; the others that need it wait.
# - **Two jobs on a GPU.** While a robot is simulated its planner's GPU is idle. `--gpus 0.25` lets others use it.
# - **A faster GPU.** It shortens trainings, not the chain of small steps of a plan, nor MuJoCo: then rollouts
#   decide.
# - **Spreading one training** over several GPUs would shorten the longest chain. With a model of a few million
#   weights there is little to gain, and this code does not do it.
#
# ## Exercises
#
# ```{exercise} A shorter chain
# :label: ex-chain
#
# Rollouts of one model could be split further, a job for each rollout seed. What would that do to the longest chain, and
# what to the cost of all rollouts?
# ```
#
# ````{solution-start} ex-chain
# :class: dropdown
# ````

# %%
planner = max(rolled, key=lambda job: cost["by arithmetic"][job])
alone = dataclasses.replace(planner, seeds=planner.seeds[:1])
together, one = (sweep.seconds(job, rates.core) / 3600 for job in (planner, alone))
print(f"{sweep.label(planner)}: {len(planner.seeds)} rollouts in one batch {together:.2f} h, one {one:.2f} h")
print(f"the chain gets {together - one:.2f} h shorter, of {floor['by arithmetic']:.0f}; all its rollouts cost {len(planner.seeds) * one / together:.2f} times as much")

# %% [markdown]
# Little, because the training is what is long. And rollouts that are planned in one batch share its fixed costs.
#
# ````{solution-end}
# ````
#
# ```{exercise} Prices
# :label: ex-price
#
# A cloud asks 3 dollars an hour for such a GPU and starts charging for all of them when the first job begins. What do 8,
# 64 and 256 GPUs cost, by arithmetic?
# ```
#
# ````{solution-start} ex-price
# :class: dropdown
# ````

# %%
for n in (8, 64, 256):
    print(f"{n:3} GPUs: {takes.loc[n, 'by arithmetic']:5.0f} hours, {3 * n * takes.loc[n, 'by arithmetic']:7,.0f} dollars")

# %% [markdown]
# Time is bought with idle GPUs: a cluster that returns machines that have nothing to do pays for the work alone.
#
# ````{solution-end}
# ````
