"""Plays a trained policy and says how often it succeeds, task by task; --video shows it, all tasks side by side.

    python enjoy.py runs/NAME --episodes 10
    python enjoy.py runs/NAME --tasks door-open-v3 drawer-close-v3 --episodes 1 --video policy.gif

The policy takes its mean action, and an episode ends at its first success, as in a script's own evaluation: with --episodes 50
and no other flag the success rates are those of evals.csv at the checkpoint's step, but for what rounding decides.
"""

import math
import os
import sys
import zipfile
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import metaworld
import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent
sys.path.append(str(ROOT / "ablations"))
EPISODE_STEPS, NUM_GOALS, OBS_DIM = 500, 50, 39
STEPS_PER_FRAME, FRAME_SECONDS = 4, 0.05  # a step is 1 / 80 s, so that a video plays at the simulation's own speed
CAMERAS = "corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV"
CAPTION, SOLVED, OPEN = "#202020", "#30c050", "#e0e0e0"  # colours


@dataclass
class Args:
    run: tyro.conf.Positional[str]
    """run directory, or a checkpoint.pt in it"""
    tasks: tuple[str, ...] = ()
    """some of the run's tasks, such as door-open-v3; none: all of them"""
    episodes: int = 5
    """episodes per task, each on another one of the task's 50 goals"""
    seed: int | None = None
    """seed that Meta-World draws the goals from; None: the run's, so the goals are those of training and evaluation"""
    video: str | None = None
    """.gif or .mp4 file (which needs pip install imageio-ffmpeg) to write: all tasks' first episodes, then their second ones"""
    size: int = 160
    """width and height of a task's picture in the video, in pixels"""
    camera: str = "corner3"
    """Meta-World's camera: corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV"""


def check(ok, message):
    if not ok:
        print(f"enjoy: error: {message}", file=sys.stderr)
        sys.exit(2)


def load(path):
    """The checkpoint's dict and its actor, a module from [K, 39 + K] observations to [K, 4] mean actions."""
    path = Path(path, "checkpoint.pt") if Path(path).is_dir() else Path(path)
    try:
        assert zipfile.ZipFile(path).testzip() is None  # compares checksums, as torch.load does not
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing
        script, hidden_sizes = checkpoint["script"], checkpoint["args"]["hidden_sizes"]
    except Exception as error:  # torch.load raises many kinds for files that torch.save did not write
        check(False, f"{path} is not a whole checkpoint of a training script ({type(error).__name__})")
    check(any(Path(folder, f"{script}.py").exists() for folder in (ROOT, ROOT / "ablations")),
          f"{path} was made by {script}.py, expected that script beside enjoy.py or in ablations/")
    agent = import_module(script).Agent(len(checkpoint["tasks"]), hidden_sizes)  # the script says what its network looks like
    agent.load_state_dict(checkpoint["agent"])
    return checkpoint, agent.actor


def render(env):
    """A picture [size, size, 3] of the environment."""
    if env.mujoco_renderer.viewer:  # gymnasium would draw in the OpenGL context of the environment that was made last
        env.mujoco_renderer.viewer.make_context_current()
    return env.render()


def draw(pictures, names, solved, caption):
    """The pictures [n, size, size, 3] as a grid, about twice as wide as high, with names, and a frame around what is solved."""
    size, columns = len(pictures[0]), math.ceil(len(names) / round(math.sqrt(len(names) / 2) + 0.1))
    grid = Image.new("RGB", (columns * size, math.ceil(len(names) / columns) * size + 20), CAPTION)
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(max(size // 14, 9))
    pen.text((6, 3), caption, SOLVED, font=ImageFont.load_default(12))
    for i, (picture, name) in enumerate(zip(pictures, names)):
        x, y = i % columns * size, i // columns * size + 20
        grid.paste(Image.fromarray(picture), (x, y))
        pen.rectangle((x, y, x + size - 1, y + size - 1), outline=SOLVED if solved[i] else CAPTION, width=4 if solved[i] else 1)
        for label, below in [(name.removesuffix("-v3"), 5), ("success", size - font.size - 12)][: 1 + solved[i]]:
            pen.rectangle((x + 5, y + below, x + 9 + pen.textlength(label, font), y + below + font.size + 4), CAPTION)
            pen.text((x + 7, y + below), label, SOLVED if solved[i] else OPEN, font=font)
    return grid


@torch.no_grad()
def play(actor, envs, goals, tasks, num_tasks, results, names=None):
    """Plays goals [n, E], an episode in each of the n environments at a time, and appends (success, returns, steps), [n] each, to
    results. Yields the video's frames if names are given."""
    one_hot = torch.eye(num_tasks)[tasks]
    for e in range(len(goals[0])):
        for env, goal in zip(envs, goals):
            env.set_task(goal[e])
        obs = np.stack([env.reset()[0] for env in envs]).astype(np.float32)
        success, returns, steps = np.zeros(len(envs), bool), np.zeros(len(envs)), np.full(len(envs), EPISODE_STEPS)
        pictures = [render(env) for env in envs] if names else []
        for t in range(EPISODE_STEPS):
            actions = actor(torch.cat([torch.from_numpy(obs), one_hot], dim=1)).numpy()  # [n, 4]
            for i in np.flatnonzero(~success):
                obs[i], reward, _, _, info = envs[i].step(actions[i].clip(-1, 1))
                returns[i], success[i] = returns[i] + reward, bool(info["success"])
                steps[i] = t + 1 if success[i] else steps[i]
                if names and (success[i] or t % STEPS_PER_FRAME == 0):
                    pictures[i] = render(envs[i])
            if names and t % STEPS_PER_FRAME == 0:
                yield draw(pictures, names, success, f"episode {e + 1}, step {t}: {success.sum()} of {len(envs)} solved")
            if success.all():
                break
        for _ in range(round(1 / FRAME_SECONDS) if names else 0):  # a second to look at the end
            yield draw(pictures, names, success, f"episode {e + 1}, step {t + 1}: {success.sum()} of {len(envs)} solved")
        results.append((success, returns, steps))
        print(f"\repisode {e + 1}/{len(goals[0])}: {success.sum()} of {len(envs)} solved ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def write(video, frames):
    """Writes the frames, PIL images, as they come to a .gif or .mp4 file."""
    if video.endswith(".mp4"):
        import imageio
        with imageio.get_writer(video, fps=1 / FRAME_SECONDS, macro_block_size=2) as file:
            for frame in frames:
                file.append_data(np.asarray(frame))
    else:
        first = next(frames)
        palette = first.quantize(128, Image.Quantize.MAXCOVERAGE)  # one for all frames: what stands still costs nothing
        rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
        palette.save(video, save_all=True, append_images=rest, duration=int(1000 * FRAME_SECONDS), loop=0)


def main():
    args = tyro.cli(Args, description=__doc__)
    checkpoint, actor = load(args.run)
    trained, flags = checkpoint["tasks"], checkpoint["args"]
    names, seed = list(args.tasks or trained), flags["seed"] if args.seed is None else args.seed
    for name, ok, expected in [
        ("tasks", {*names} <= {*trained} and len({*names}) == len(names), f"tasks of the run, each once: {' '.join(trained)}"),
        ("episodes", 0 < args.episodes <= NUM_GOALS, f"1 to {NUM_GOALS}, a task's goals"),
        ("seed", 0 <= seed < 2**32, "0 to 2^32 - 1, the seeds that Meta-World takes"),
        ("video", args.video is None or args.video.endswith((".gif", ".mp4")), "a name that ends in .gif or .mp4"),
        ("video", not (args.video or "").endswith(".mp4") or find_spec("imageio_ffmpeg"), "pip install imageio-ffmpeg for .mp4"),
        ("size", 64 <= args.size <= 1024, "64 to 1024 pixels"),
        ("camera", args.camera in CAMERAS, " ".join(CAMERAS)),
    ]:
        check(ok, f"--{name} {getattr(args, name)}: expected {expected}")
    if args.video and sys.platform == "linux" and not os.environ.get("DISPLAY") and "MUJOCO_GL" not in os.environ:
        found = [name.lower() for name in ("EGL", "OSMesa") if find_library(name)]  # both draw without a screen
        check(found, "--video needs a screen or a system library: apt install libegl1, or libosmesa6 where that has no driver")
        os.environ["MUJOCO_GL"] = found[0]
    screen = dict(render_mode="rgb_array", camera_name=args.camera, width=args.size, height=args.size) if args.video else {}
    benchmarks = [metaworld.MT1(name, seed=seed) for name in names]  # each draws its task's 50 goals
    envs = [mt1.train_classes[n](reward_function_version=flags["reward_version"], **screen) for mt1, n in zip(benchmarks, names)]
    for env in envs:
        env.model.vis.quality.shadowsize = 0  # shadows take most of the time of a picture without a GPU
    goals = [mt1.train_tasks[: args.episodes] for mt1 in benchmarks]
    tasks, results = [trained.index(name) for name in names], []
    frames = play(actor, envs, goals, tasks, len(trained), results, names if args.video else None)
    try:
        write(args.video, frames) if args.video else [*frames]
    except OSError as error:
        check(False, f"--video {args.video}: {error.strerror or error}; expected a file that can be written")
    success, returns, steps = (np.array(x) for x in zip(*results))  # [E, n] each
    print(f"{checkpoint['script']} at {checkpoint['global_step']:,} steps, goals of seed {seed}")
    print(f"{'task':28}{'success':>8}{'episodes':>10}{'mean return':>13}{'steps to success':>18}")
    for i, name in enumerate(names):
        taken = f"{steps[success[:, i], i].mean():.0f}" if success[:, i].any() else "-"
        print(f"{name:28}{success[:, i].mean():8.2f}{len(success):10}{returns[:, i].mean():13.1f}{taken:>18}")
    print(f"{'mean':28}{success.mean():8.3f}{success.size:10}{returns.mean():13.1f}")
    if args.video:
        print(f"wrote {args.video}")


if __name__ == "__main__":
    main()
