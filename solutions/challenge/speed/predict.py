import torch

from qlab.lab.challenge import normalised
from qlab.nets import ptq

model = ptq.load("model.bin").model


@torch.inference_mode()
def predict(pixels):
    found = [model(normalised(x).to(memory_format=torch.channels_last)) for x in pixels.split(100)]
    return torch.cat(found).argmax(1)
