"""The whole training: words, joint space, decoder, checkpoint. Cut anywhere, the same command goes on."""

from __future__ import annotations

import torch

from revln.models.memory import keep_freed_memory
from revln.training.decoding import calibrate, space_of, train_decoder
from revln.training.export import export
from revln.training.joint_space import train_joint_space
from revln.training.options import TrainOptions
from revln.training.setting import Setting

__all__ = ["train"]


def train(options: TrainOptions) -> None:
    """Run what is still to be run, and write the checkpoint folder after the joint space and at the end.

    Raises:
        ValidationFailed: a file of the data is missing or malformed, or two options contradict each other.
        ModelUnavailable: the model to go on from cannot be read.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(options.seed)
    setting = Setting(options)
    train_joint_space(setting)
    setting.net.eval()  # the encoders stay as they are from here on
    space = space_of(setting)
    calibrate(setting, space)
    export(options.out, setting.config, setting.net, setting.tokenizer, options)
    train_decoder(setting, space)
    export(options.out, setting.config, setting.net, setting.tokenizer, options)
    setting.curves.draw()
