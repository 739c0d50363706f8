"""Plays a trained policy and says how often it succeeds, task by task; --video shows it.

    python enjoy.py runs/NAME --episodes 10
    python enjoy.py runs/NAME --tasks door-open-v3 drawer-close-v3 --episodes 1 --video policy.gif

The policy takes its mean action, and an episode ends at its first success, as in a script's own
evaluation: with --episodes as the run's --eval-episodes the success rates are those of evals.csv,
but for what rounding decides.

A policy is a run directory, a checkpoint in one, or a directory with an actor.pt, as
`python tools/compact.py runs/NAME --out FOLDER --actor` writes it. actor.pt is
torch.save({"script": name, "args": flags, "actor": agent.actor.state_dict(), "log_std": [K, 4]}).
"""

import math
import os
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

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
CAMERA = "corner2"

DARK = "#202020"
LIGHT = "#e0e0e0"
GREEN = "#30c050"


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

    def __post_init__(self):
        video = self.video or ".gif"
        expected = {
            "episodes: expected 1 to 50, a task's goals": 0 < self.episodes <= NUM_GOALS,
            "seed: expected 0 to 2^32 - 1": 0 <= (self.seed or 0) < 2**32,
            "size: expected 64 to 1024 pixels": 64 <= self.size <= 1024,
            "video: expected a name in .gif or .mp4": video.endswith((".gif", ".mp4")),
            "video: pip install imageio-ffmpeg": video[-3:] == "gif" or find_spec("imageio_ffmpeg"),
        }
        for message, holds in expected.items():
            if not holds:
                raise ValueError(message)  # tyro prints it


def fail(message):
    sys.exit(f"enjoy: error: {message}")


# --- The policy


def load_policy(path):
    """The actor, the run's flags and a title, from one of the places that Args.run names."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("checkpoint.pt", "actor.pt") if (path / name).exists()]
        if not found:
            fail(f"{path} has no checkpoint.pt and no actor.pt, as tools/compact.py writes it")
        path = found[0]
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing
        args = saved["args"]
        title = saved["script"]
        if "actor" in saved:
            weights = saved["actor"]
        else:
            names = [name for name in saved["agent"] if name.startswith("actor.")]
            weights = {name.removeprefix("actor."): saved["agent"][name] for name in names}
            steps = saved["collects"] * len(args["tasks"]) * args["num_steps"]
            title += f" after {steps:,} steps"
        return build_actor(weights), args, title
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


def make_envs(args, names, seed, reward_version):
    """The tasks' environments, and their goals [n, 50]."""
    options = {"reward_function_version": reward_version}
    if args.video:
        choose_renderer()
        options |= {"render_mode": "rgb_array", "camera_name": CAMERA}
        options |= {"width": args.size, "height": args.size}
    benchmarks = [metaworld.MT1(name, seed=seed) for name in names]  # each draws 50 goals
    envs = [mt1.train_classes[name](**options) for mt1, name in zip(benchmarks, names)]
    for env in envs:
        env.model.vis.quality.shadowsize = 0  # most of a picture's time without a GPU
        env.model.camera(CAMERA).fovy = 40  # with Meta-World's 60 degrees the task is small
    return envs, [mt1.train_tasks for mt1 in benchmarks]


@torch.no_grad()
def play(actor, envs, one_hot):
    """Plays an episode in each of n environments, side by side. one_hot: [n, K].

    Yields success and returns, [n] each, before the first step and after each one.
    """
    success = np.zeros(len(envs), bool)
    returns = np.zeros(len(envs))
    obs = np.stack([env.reset()[0] for env in envs])
    yield success, returns

    for _ in range(EPISODE_STEPS):
        inputs = torch.cat([torch.from_numpy(obs).float(), one_hot], dim=1)
        actions = actor(inputs).numpy().clip(-1, 1)  # [n, 4]
        for i in np.flatnonzero(~success):
            obs[i], reward, _, _, info = envs[i].step(actions[i])
            returns[i] += reward
            success[i] = bool(info["success"])
        yield success, returns
        if success.all():
            break


def play_all(args, actor, flags, names, seed, results):
    """Plays all episodes, appends what play yields last to results, and yields the video."""
    envs, goals = make_envs(args, names, seed, flags["reward_version"])
    trained = list(flags["tasks"])
    one_hot = torch.eye(len(trained))[[trained.index(name) for name in names]]
    for e in range(args.episodes):
        for env, task_goals in zip(envs, goals):
            env.set_task(task_goals[e])
        episode = play(actor, envs, one_hot)
        if args.video:
            yield from film(episode, envs, names, results)
        else:
            results.append([*episode][-1])
        solved = f"{results[-1][0].sum()} of {len(names)} solved"
        print(f"episode {e + 1}/{args.episodes}: {solved}", file=sys.stderr)


# --- The video


def choose_renderer():
    """Has MuJoCo draw without a screen where there is none."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or "MUJOCO_GL" in os.environ:
        return
    found = [name.lower() for name in ("EGL", "OSMesa") if find_library(name)]
    if not found:
        fail("--video needs a screen, or apt install libegl1 (libosmesa6 where that has no driver)")
    os.environ["MUJOCO_GL"] = found[0]


def render(env):
    """A picture [size, size, 3] of the environment, the right way up."""
    if env.mujoco_renderer.viewer:
        # gymnasium would draw in the OpenGL context of the environment that was made last
        env.mujoco_renderer.viewer.make_context_current()
    return env.render()[::-1, ::-1]  # Meta-World has this camera upside down


def film(episode, envs, names, results):
    """An episode's frames to the last success, or all, and a second in which they stand still.

    Appends what the episode yields last to results.
    """
    pictures = [None] * len(envs)
    shown = np.zeros(len(envs), bool)  # of which tasks the success is in a frame
    frames = []
    end = None  # what follows the last success is cut
    for t, state in enumerate(episode):
        success = state[0].copy()
        if t % STEPS_PER_FRAME != 0 and not success.all():
            continue
        for i in np.flatnonzero(~shown):  # a solved task stands still
            pictures[i] = render(envs[i])
        if success.sum() > shown.sum():
            end = len(frames) + 1
        shown = success
        frames.append(draw(pictures, names, success))
    results.append(state)
    frames = frames[:end]
    return frames + [frames[-1]] * FRAMES_PER_SECOND


def draw(pictures, names, success):
    """The pictures [n, size, size, 3] as a grid about twice as wide as high, with names."""
    size = len(pictures[0])
    num_columns = min(len(names), math.ceil(math.sqrt(2 * len(names))))
    num_rows = math.ceil(len(names) / num_columns)
    grid = Image.new("RGB", (num_columns * size, num_rows * size), DARK)
    pen = ImageDraw.Draw(grid)
    font = ImageFont.load_default(max(size // 12, 9))
    for i, (picture, name) in enumerate(zip(pictures, names)):
        x = i % num_columns * size
        y = i // num_columns * size
        grid.paste(Image.fromarray(picture), (x, y))
        frame = {"outline": GREEN, "width": 5} if success[i] else {"outline": DARK}
        pen.rectangle((x, y, x + size - 1, y + size - 1), **frame)
        name = name.removesuffix("-v3")
        pen.rectangle((x + 6, y + 6, x + 10 + pen.textlength(name, font), y + 10 + font.size), DARK)
        pen.text((x + 8, y + 6), name, LIGHT, font=font)
    return grid


def write_video(path, frames):
    """Writes the frames as they come, to a .gif or .mp4 file."""
    if path.endswith(".mp4"):
        import imageio

        with imageio.get_writer(path, fps=FRAMES_PER_SECOND, macro_block_size=2) as file:
            for frame in frames:
                file.append_data(np.asarray(frame))
        return

    # The palette of all frames: the first one's, and the green of success
    first = next(frames)
    colours = first.copy()
    ImageDraw.Draw(colours).rectangle((0, 0, 40, 40), GREEN)
    palette = colours.quantize(128, Image.Quantize.MAXCOVERAGE)
    options = {"palette": palette, "dither": Image.Dither.NONE}
    first = first.quantize(**options)
    rest = (frame.quantize(**options) for frame in frames)
    milliseconds = 1000 // FRAMES_PER_SECOND
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)


# --- Main


def print_table(names, results):
    success, returns = (np.array(x) for x in zip(*results))  # [E, n] each
    print(f"{'task':28}{'success':>8}{'episodes':>10}{'mean return':>13}")
    for i, name in enumerate(names):
        rate = success[:, i].mean()
        print(f"{name:28}{rate:8.2f}{len(success):10}{returns[:, i].mean():13.1f}")
    print(f"{'mean':28}{success.mean():8.3f}{success.size:10}{returns.mean():13.1f}")


def main():
    args = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)  # the actor is small
    actor, flags, title = load_policy(args.run)
    names = args.tasks or tuple(flags["tasks"])
    seed = flags["seed"] if args.seed is None else args.seed
    if not set(names) <= set(flags["tasks"]) or len(set(names)) < len(names):
        fail(f"--tasks: expected some of the run's, each once: {' '.join(flags['tasks'])}")

    results = []  # of each episode: success and returns, [n] each
    frames = play_all(args, actor, flags, names, seed, results)
    try:
        write_video(args.video, frames) if args.video else list(frames)
    except OSError as error:
        fail(f"--video {args.video}: {error.strerror or error}; expected a file to write to")
    print(f"{title}, goals of seed {seed}")
    print_table(names, results)
    if args.video:
        print(f"wrote {args.video}")


if __name__ == "__main__":
    main()
