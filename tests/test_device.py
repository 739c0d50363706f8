"""The update on a GPU, without one: on torch's meta device no number can be read.

Whatever would wait for the GPU, such as .item(), float(tensor) or `if tensor:`, raises there.
"""

import numpy as np
import torch
from plain_update import random_rollout
from scripts import every_script
from torch.utils._python_dispatch import TorchDispatchMode

TASKS = ("reach-v3", "push-v3", "door-open-v3")


class Transfers(TorchDispatchMode):
    """Notes what crosses between the devices. What comes to the CPU is a made-up Gram."""

    def __init__(self):
        super().__init__()
        self.to_cpu = []  # shapes
        self.waits = []  # shapes of what goes to the device while the CPU stands still

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if function is torch.ops.aten._to_copy.default and target is not None:
            devices = (args[0].device.type, torch.device(target).type)
            shape = tuple(args[0].shape)
            if devices == ("meta", "cpu"):
                self.to_cpu.append(shape)
                J = torch.randn(*shape[:-1], 40, dtype=torch.float64)
                return J @ J.mT
            if devices == ("cpu", "meta") and not kwargs.get("non_blocking"):
                self.waits.append(shape)
        return function(*args, **kwargs)


@every_script
def test_an_update_waits_for_the_gpu_once_a_minibatch(module):
    args = module.Args(tasks=TASKS, update_epochs=2, num_minibatches=2)
    args.num_steps = 20  # the update does not care how long an episode is
    agent = module.Agent(3, (16, 16)).to("meta")
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=args.adam_eps)
    rollout = {name: x.astype(np.float32) for name, x in random_rollout(3, 1, 20).items()}
    with Transfers() as transfers:
        metrics = module.update(agent, optimizer, rollout, np.random.default_rng(0), args)

    assert transfers.to_cpu == 4 * [(2, 3, 3)]  # both Grams at once, in each minibatch
    # The rollout, and each pass's order of the samples
    assert transfers.waits == [(3, 1, 21, 42), (3, 1, 20, 4), (3, 1, 20), (3, 20), (3, 20)]
    assert metrics["losses/policy"].device.type == "meta"
