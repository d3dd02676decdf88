"""The source document's 5.1 as it is printed: Keras, TFLiteConverter; beside qlab's own .tflite file of the same network.

    make tflite-keras                                                         about 3 minutes, and 1.5 GB for TensorFlow
    python -m qlab.lab.experiments.tflite_keras PYTHON                        PYTHON: of an environment with tensorflow-cpu

The zoo's plain CNN becomes a Keras model with the same weights, saved as the document's model.h5. Its listing is run as it stands (the
comments translated), and refused: full INT8 needs a representative data set. With one, the 512 training images that qlab calibrates with,
it converts. What comes out is measured by LiteRT on the 10,000 test images, beside what qlab.deploy.tflite writes of the same weights.

TensorFlow is too large for the course's environment, and torch is not in TensorFlow's: this file runs in both, so imports neither above.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

NETWORK, CALIBRATION_IMAGES = "cnn", 512
LISTING = """\
import tensorflow as tf

# load the TensorFlow model
model = tf.keras.models.load_model('model.h5')

# make a TensorFlow Lite converter
converter = tf.lite.TFLiteConverter.from_keras_model(model)

# set the options of quantization
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = tf.int8
converter.inference_output_type = tf.int8

# convert the model
tflite_model = converter.convert()

# save the quantized model
with open('model_quantized.tflite', 'wb') as f:
  f.write(tflite_model)
"""
MISSING_LINES = """\
def representative_dataset():
  for image in calibration_images:  # training images, float32 (28, 28, 1)
    yield [image[None]]

converter.representative_dataset = representative_dataset

"""
PLACE = "# convert the model\n"


# In TensorFlow's environment


def convert(folder: Path) -> None:
    """Write model.h5 and three .tflite files to folder, and what was said to said.json."""
    import keras
    import tensorflow as tf

    given = np.load(folder / "given.npz")
    model = keras_model({name: given[name] for name in given.files if "." in name})
    model.save(folder / "model.h5")
    images = given["calibration"].transpose(0, 2, 3, 1)                                     # (n, rows, columns, channels)
    logits = model.predict(given["test"].transpose(0, 2, 3, 1), batch_size=100, verbose=0)
    said = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    with contextlib.chdir(folder):
        try:
            exec(LISTING, {})
            said["listing"] = None
        except ValueError as error:
            said["listing"] = f"{type(error).__name__}: {error}"
        exec(LISTING.replace(PLACE, MISSING_LINES + PLACE), {"calibration_images": images})
    for name, optimizations in (("float", []), ("dynamic", [tf.lite.Optimize.DEFAULT])):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = optimizations
        (folder / f"{name}.tflite").write_bytes(converter.convert())
    np.save(folder / "logits.npy", logits)
    (folder / "said.json").write_text(json.dumps(said))


def keras_model(weights: dict[str, np.ndarray]):
    """qlab.nets.models.plain_cnn in Keras, with its weights: channels last, kernels (rows, columns, in, out)."""
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((28, 28, 1))])
    for channels in (32, 64, 64):
        model.add(layers.Conv2D(channels, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2))
    for layer in (layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)):
        model.add(layer)
    named = dict(zip(("conv1", "conv2", "conv3", "fc1", "fc2"), (layer for layer in model.layers if layer.weights)))
    for name, layer in named.items():
        w = weights[f"{name}.weight"]
        if name == "fc1":  # PyTorch flattens (channel, row, column), Keras (row, column, channel)
            w = w.reshape(64, 64, 3, 3).transpose(0, 2, 3, 1).reshape(64, 576)
        layer.set_weights([w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T, weights[f"{name}.bias"]])
    return model


# In the course's environment


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="the python of an environment with tensorflow-cpu")
    python = parser.parse_args(arguments).python
    if not shutil.which(python):
        parser.error(f"there is no {python}: make tflite-keras makes one.")
    from qlab.lab import runs

    with tempfile.TemporaryDirectory() as folder:
        content = experiment(python, Path(folder))
    runs.write("tflite_keras", "make tflite-keras", **content)


def experiment(python: str, folder: Path) -> dict:
    """Give the network to TensorFlow, take its files back, measure them and ours."""
    import torch

    from qlab.deploy import tflite
    from qlab.lab import data, runs, zoo
    from qlab.lab.measure import accuracy
    from qlab.lab.significance import Accuracy
    from qlab.nets import integer, ptq

    model, calibration, (images, labels) = zoo.load(NETWORK), data.calibration(CALIBRATION_IMAGES).images, data.load("test")
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.savez(folder / "given.npz", calibration=calibration.numpy(), test=images.numpy(), **weights)
    done = subprocess.run([python, str(Path(__file__).resolve()), "--convert", str(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"qlab: {python} could not convert the network ({done.stderr.strip().splitlines()[-1]}): it needs tensorflow-cpu==2.21.0.")
    said = json.loads((folder / "said.json").read_text())
    with torch.no_grad():
        ours = torch.cat([model(batch) for batch in images.split(100)])
    network = integer.convert(ptq.quantize(model, calibration))
    tflite.export(network, folder / "qlab.tflite")
    integer_logits = torch.cat([network.decode(network(batch)) for batch in images.split(100)])

    files = {"qlab": "qlab.tflite", "keras": "model_quantized.tflite", "keras, float": "float.tflite",
             "keras, weights only": "dynamic.tflite"}
    logits = {f"{name}, {kernels}": tflite.run(folder / file, images, kernels)
              for name, file in files.items() for kernels in (("xnnpack", "builtin") if name in ("qlab", "keras") else ("xnnpack",))}
    rows = {name: {"nbytes": (folder / files[name.rpartition(", ")[0]]).stat().st_size,
                   **runs.outcome(Accuracy(values.argmax(1) == labels))} for name, values in logits.items()}
    return {
        "versions": said | {"ai-edge-litert": _version("ai-edge-litert")}, "checkpoint": zoo.record(NETWORK)["sha256"],
        "calibration_images": CALIBRATION_IMAGES, "listing": LISTING, "listing_says": said["listing"], "missing_lines": MISSING_LINES,
        "float": {"torch": runs.outcome(accuracy(model, data.load("test"), batch_size=100)),
                  "largest_difference": float(np.abs(np.load(folder / "logits.npy") - ours.numpy()).max())},
        "integer": runs.outcome(Accuracy(integer_logits.argmax(1) == labels)), "rows": rows,
        "same_prediction": {other: runs.outcome(Accuracy(logits[other].argmax(1) == logits["qlab, builtin"].argmax(1)))
                            for other in ("keras, builtin", "keras, xnnpack", "qlab, xnnpack")},
        "files": {name: _inside(tflite.describe(folder / file)) for name, file in files.items()},
        "logits_apart": {name: _apart(logits[name], logits["qlab, builtin"], network.grid_out.scale)
                         for name in ("keras, builtin", "keras, xnnpack", "qlab, xnnpack")},
        "arena": {"qlab": tflite.arena(folder / files["qlab"]), "keras": tflite.arena(folder / files["keras"])},
        "same_codes": _same_codes(folder / files["qlab"], folder / files["keras"]),
    }


def _apart(a, b, scale: float) -> dict:
    """The share of the logits that are one code, and the most codes that two are apart."""
    steps = ((a - b) / scale).round().abs()
    return {"equal": round((steps == 0).double().mean().item(), 4), "most_codes": int(steps.max())}


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _inside(model) -> dict:
    """Operators with the quantization of what they write, and the bytes of the constants."""
    constants = {t.name: t.nbytes for o in model.operators for t in o.inputs if t.nbytes}
    return {"input": _grid(model.inputs[0]), "constant_bytes": sum(constants.values()),
            "operators": [{"name": o.name} | _grid(o.outputs[0]) for o in model.operators]}


def _grid(tensor) -> dict:
    return {"dtype": tensor.dtype, "scale": list(tensor.scale), "zero_point": list(tensor.zero_point)}


def _same_codes(ours: Path, theirs: Path) -> dict:
    """Of each layer's weights: how many codes are equal in both files, of how many; the largest ratio of two scales of a channel."""
    from qlab.deploy import tflite

    rows = {}
    for a, b in zip(_weights(tflite, ours), _weights(tflite, theirs)):
        ratio = np.asarray(a[1]) / np.asarray(b[1])
        rows[a[0]] = {"equal": int((a[2] == b[2]).sum()), "of": a[2].size, "scales": len(a[1]), "scales_keras": len(b[1]),
                      "scale_ratio": [float(ratio.min()), float(ratio.max())]}
    return rows


def _weights(tflite, path: Path) -> list:
    """Name, scales and codes of each layer's weight."""
    constants = tflite.constants(path)
    layers = [o for o in tflite.describe(path).operators if o.name in ("CONV_2D", "FULLY_CONNECTED")]
    return [(o.inputs[1].name, o.inputs[1].scale, constants[o.inputs[1].name]) for o in layers]


if __name__ == "__main__":
    convert(Path(sys.argv[2])) if sys.argv[1:2] == ["--convert"] else main()
