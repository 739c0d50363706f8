"""Plays a trained policy and says how often it succeeds, task by task; --video shows it.

    python enjoy.py runs/NAME --episodes 10
    python enjoy.py runs/NAME --tasks door-open-v3 drawer-close-v3 --video policy.gif

The policy takes its mean action, and an episode ends at its first success, as in a script's own
evaluation. With --episodes as the run's --eval-episodes and no other flag the success rates are
those that evals.csv has of the checkpoint's step, if it has any, but for what rounding decides.

A policy is a run directory, a checkpoint in one, or a small directory with args.json and actor.pt,
as `python paper/compact.py runs/NAME --out FOLDER --actor` writes it. actor.pt is
torch.save({"script": name, "args": flags, "actor": agent.actor.state_dict(), "log_std": [K, 4]}).
"""

import math
import os
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import metaworld
import numpy as np
import torch
import torch.nn as nn
import tyro
from PIL import Image, ImageDraw, ImageFont

EPISODE_STEPS = 500
NUM_GOALS = 50
STEPS_PER_FRAME = 4  # a step is 1 / 80 s, so that a video plays at the simulation's own speed
FRAMES_PER_SECOND = 20
UPSIDE_DOWN = ("corner", "corner2", "corner3")  # as Meta-World mounts these cameras

CAPTION = "#202020"
SOLVED = "#30c050"
OPEN = "#e0e0e0"


@dataclass
class Args:
    run: tyro.conf.Positional[Path]
    """run directory, checkpoint in one, or directory with an actor.pt"""
    tasks: tuple[str, ...] = ()
    """some of the run's tasks, such as door-open-v3; none: all of them"""
    episodes: int = 5
    """episodes per task, each on another one of the task's 50 goals"""
    seed: int | None = None
    """seed that the goals are drawn from; None: the run's, the goals of training and evaluation"""
    video: str | None = None
    """.gif or .mp4 file to write (.mp4: pip install imageio-ffmpeg), all tasks side by side"""
    size: int = 160
    """width and height of a task's picture in the video, in pixels"""
    camera: Literal["corner", "corner2", "corner3", "topview", "behindGripper", "gripperPOV"] = (
        "corner2"
    )
    """Meta-World's camera"""

    def __post_init__(self):
        def expect(ok, message):
            if not ok:
                raise ValueError(message)  # tyro prints it

        video = self.video or ".gif"
        expect(0 < self.episodes <= NUM_GOALS, "episodes: expected 1 to 50, a task's goals")
        expect(0 <= (self.seed or 0) < 2**32, "seed: expected 0 to 2^32 - 1")
        expect(64 <= self.size <= 1024, "size: expected 64 to 1024 pixels")
        expect(video.endswith((".gif", ".mp4")), "video: expected a name in .gif or .mp4")
        expect(Path(video).parent.is_dir(), "video: expected a name in a folder that is there")
        ready = video.endswith(".gif") or find_spec("imageio_ffmpeg")
        expect(ready, "video: pip install imageio-ffmpeg first")


def fail(message):
    print(f"enjoy: error: {message}", file=sys.stderr)
    sys.exit(2)


# --- The policy


class Policy(NamedTuple):
    actor: nn.Module  # from [n, 39 + K] observations with the task's one-hot to [n, 4] mean actions
    args: dict  # the run's flags
    title: str  # script and, of a checkpoint, steps


def load_policy(path):
    """The Policy of a run directory, of a checkpoint, or of a directory with an actor.pt."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("checkpoint.pt", "actor.pt") if (path / name).exists()]
        if not found:
            fail(
                f"{path} has no checkpoint.pt, as a run directory has, and no actor.pt, as "
                "python paper/compact.py RUN --out FOLDER --actor writes it"
            )
        path = found[0]
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing
        weights = saved.get("actor") or {
            name.removeprefix("actor."): weight
            for name, weight in saved["agent"].items()
            if name.startswith("actor.")
        }
        args = saved["args"]
        title = saved["script"]
        if "progress" in saved:
            steps = saved["progress"]["collects"] * len(args["tasks"]) * args["num_steps"]
            title += f" after {steps:,} steps"
        return Policy(build_actor(weights), args, title)
    except Exception as error:  # torch.load raises many kinds for files that are not its own
        fail(f"{path} is not a whole checkpoint or actor.pt of a training script: {error!r}")


def build_actor(weights):
    """The nn.Sequential that the weights are of, as {"0.weight": ..., "0.bias": ..., ...}.

    A matrix is a linear layer's, a vector a LayerNorm's, and what has no weights is a ReLU.
    """
    layers = []
    for i in range(1 + max(int(name.split(".")[0]) for name in weights)):
        weight = weights.get(f"{i}.weight")
        if weight is None:
            layers.append(nn.ReLU())
        elif weight.ndim == 1:
            layers.append(nn.LayerNorm(len(weight)))
        else:
            n_out, n_in = weight.shape
            layers.append(nn.Linear(n_in, n_out, bias=f"{i}.bias" in weights))
    actor = nn.Sequential(*layers)
    actor.load_state_dict(weights)
    return actor


# --- Episodes


class Episodes(NamedTuple):
    """One episode of each of n tasks."""

    success: np.ndarray  # [n]
    returns: np.ndarray  # [n]
    steps: np.ndarray  # [n]: to success, or all 500


@torch.no_grad()
def play(actor, envs, one_hot, show=None):
    """An episode in each of the n environments, in step. Returns Episodes.

    one_hot: [n, K]. show: called with step and success [n], before the first step and after each.
    """
    success = np.zeros(len(envs), bool)
    returns = np.zeros(len(envs))
    steps = np.full(len(envs), EPISODE_STEPS)
    obs = np.stack([env.reset()[0] for env in envs])
    for t in range(EPISODE_STEPS + 1):
        if show:
            show(t, success)
        if success.all() or t == EPISODE_STEPS:
            break
        inputs = torch.cat([torch.from_numpy(obs).float(), one_hot], dim=1)
        actions = actor(inputs).numpy().clip(-1, 1)  # [n, 4]
        for i in np.flatnonzero(~success):
            obs[i], reward, _, _, info = envs[i].step(actions[i])
            returns[i] += reward
            if info["success"]:
                success[i] = True
                steps[i] = t + 1
    return Episodes(success, returns, steps)


# --- The video


def choose_renderer():
    """Has MuJoCo draw without a screen where there is none."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or "MUJOCO_GL" in os.environ:
        return
    found = [name.lower() for name in ("EGL", "OSMesa") if find_library(name)]
    if not found:
        libraries = "apt install libegl1, or libosmesa6 where that has no driver"
        fail(f"--video needs a screen or a system library: {libraries}")
    os.environ["MUJOCO_GL"] = found[0]


def render(env, camera):
    """A picture [size, size, 3] of the environment, the right way up."""
    if env.mujoco_renderer.viewer:
        # gymnasium would draw in the OpenGL context of the environment that was made last
        env.mujoco_renderer.viewer.make_context_current()
    picture = env.render()
    return picture[::-1, ::-1] if camera in UPSIDE_DOWN else picture


class Film:
    """The frames of one episode, all tasks side by side."""

    def __init__(self, envs, names, camera, title):
        self.envs = envs
        self.names = names
        self.camera = camera
        self.title = title
        self.pictures = [None] * len(envs)
        self.success = np.zeros(len(envs), bool)
        self.frames = []
        self.last_success = None  # the frame that shows it

    def show(self, t, success):
        """Takes a frame. What is solved stands still."""
        if t % STEPS_PER_FRAME != 0 and not success.all():
            return
        for i in np.flatnonzero(~self.success):
            self.pictures[i] = render(self.envs[i], self.camera)
        if success.sum() > self.success.sum():
            self.last_success = len(self.frames)
        self.success = success.copy()
        caption = f"{self.title}, step {t}: {success.sum()} of {len(success)} solved"
        self.frames.append(draw(self.pictures, self.names, success, caption))

    def cut(self):
        """The frames until a second after the last success; without one, a second after the end."""
        last = len(self.frames) - 1 if self.last_success is None else self.last_success
        still = [self.frames[-1]] * FRAMES_PER_SECOND
        return (self.frames + still)[: last + 1 + FRAMES_PER_SECOND]


def draw(pictures, names, success, caption):
    """The pictures [n, size, size, 3] as a grid about twice as wide as high, with names."""
    size = len(pictures[0])
    num_rows = round(math.sqrt(len(names) / 2) + 0.1)
    num_columns = math.ceil(len(names) / num_rows)
    height = 20 + math.ceil(len(names) / num_columns) * size
    grid = Image.new("RGB", (num_columns * size, height), CAPTION)
    pen = ImageDraw.Draw(grid)
    pen.text((6, 3), caption, SOLVED, font=ImageFont.load_default(12))
    font = ImageFont.load_default(max(size // 14, 9))

    def label(x, y, text, colour):
        pen.rectangle((x, y, x + 4 + pen.textlength(text, font), y + font.size + 4), CAPTION)
        pen.text((x + 2, y), text, colour, font=font)

    for i, (picture, name) in enumerate(zip(pictures, names)):
        x = i % num_columns * size
        y = 20 + i // num_columns * size
        frame = (x, y, x + size - 1, y + size - 1)
        grid.paste(Image.fromarray(picture), (x, y))
        if success[i]:
            pen.rectangle(frame, outline=SOLVED, width=4)
            label(x + 5, y + size - font.size - 12, "success", SOLVED)
        else:
            pen.rectangle(frame, outline=CAPTION)
        label(x + 5, y + 5, name.removesuffix("-v3"), SOLVED if success[i] else OPEN)
    return grid


def write_video(path, frames):
    """Writes the frames as they come, to a .gif or .mp4 file."""
    if path.endswith(".mp4"):
        import imageio

        with imageio.get_writer(path, fps=FRAMES_PER_SECOND, macro_block_size=2) as file:
            for frame in frames:
                file.append_data(np.asarray(frame))
        return

    # One palette for all frames: what stands still then costs nothing
    first = next(frames).quantize(128, Image.Quantize.MAXCOVERAGE)
    rest = (frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in frames)
    milliseconds = 1000 // FRAMES_PER_SECOND
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)


# --- Main


def make_envs(args, names, seed, reward_version):
    """The tasks' environments, and their goals [n, 50]."""
    options = {"reward_function_version": reward_version}
    if args.video:
        choose_renderer()
        options |= {"render_mode": "rgb_array", "camera_name": args.camera}
        options |= {"width": args.size, "height": args.size}
    benchmarks = [metaworld.MT1(name, seed=seed) for name in names]  # each draws 50 goals
    envs = [mt1.train_classes[name](**options) for mt1, name in zip(benchmarks, names)]
    for env in envs:
        env.model.vis.quality.shadowsize = 0  # most of a picture's time without a GPU
        env.model.camera("corner2").fovy = 40  # with Meta-World's 60 degrees the task is small
    return envs, [mt1.train_tasks for mt1 in benchmarks]


def episodes(args, policy, names, seed, results):
    """Plays the episodes and appends Episodes to results. Yields the video's frames, if any."""
    envs, goals = make_envs(args, names, seed, policy.args["reward_version"])
    trained = policy.args["tasks"]
    one_hot = torch.eye(len(trained))[[trained.index(name) for name in names]]
    for e in range(args.episodes):
        for env, task_goals in zip(envs, goals):
            env.set_task(task_goals[e])
        film = Film(envs, names, args.camera, f"episode {e + 1}")
        result = play(policy.actor, envs, one_hot, film.show if args.video else None)
        results.append(result)
        solved = f"{result.success.sum()} of {len(names)} solved"
        print(f"\repisode {e + 1}/{args.episodes}: {solved} ", end="", file=sys.stderr, flush=True)
        if args.video:
            yield from film.cut()
    print(file=sys.stderr)


def print_table(names, results):
    success, returns, steps = (np.array(x) for x in zip(*results))  # [E, n] each
    print(f"{'task':28}{'success':>8}{'episodes':>10}{'mean return':>13}{'steps to success':>18}")
    for i, name in enumerate(names):
        taken = f"{steps[success[:, i], i].mean():.0f}" if success[:, i].any() else "-"
        rate = success[:, i].mean()
        print(f"{name:28}{rate:8.2f}{len(success):10}{returns[:, i].mean():13.1f}{taken:>18}")
    print(f"{'mean':28}{success.mean():8.3f}{success.size:10}{returns.mean():13.1f}")


def main():
    args = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)  # the actor is small
    policy = load_policy(args.run)
    trained = policy.args["tasks"]
    names = args.tasks or trained
    seed = policy.args["seed"] if args.seed is None else args.seed
    if not set(names) <= set(trained) or len(set(names)) < len(names):
        fail(f"--tasks: expected some of the run's, each once: {' '.join(trained)}")

    results = []
    frames = episodes(args, policy, names, seed, results)
    try:
        if args.video:
            write_video(args.video, frames)
        else:
            list(frames)
    except OSError as error:
        fail(f"--video {args.video}: {error.strerror or error}; expected a file to write to")
    print(f"{policy.title}, goals of seed {seed}")
    print_table(names, results)
    if args.video:
        print(f"wrote {args.video}")


if __name__ == "__main__":
    main()
