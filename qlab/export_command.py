"""The command `qlab export`: a network of the zoo, or one's own, in somebody else's runtime.

Only the standard library is imported here, as in qlab.cli.
"""

import argparse
import os
import sys

from qlab.errors import one_line
from qlab.translate import tr

EXAMPLES = """For instance: qlab export --to tflite depthwise depthwise.tflite; or
qlab export my_module:make_model --weights state.pt --calibration images.npy net.onnx.
The module is imported from the current folder, and runs."""


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("export", help="write a network of the zoo, or your own, for another runtime", epilog=EXAMPLES,
                                  description="Quantizes a network to INT8, writes it for a runtime, and says how the file does.")
    command.add_argument("--to", choices=("tflite", "c", "onnx", "pytorch"),
                         help="the runtime (default: the one that OUT's ending names: .tflite, .c, .onnx, .pt2)")
    command.add_argument("model", metavar="MODEL", help="a network of the zoo, such as depthwise; or your own as my_module:NAME or "
                         "path/to/file.py:NAME, where NAME is a torch.nn.Module, or a class or function that makes one without arguments")
    command.add_argument("--calibration", metavar="IMAGES", help="for your own network: training images (n, ...), floats scaled as it was "
                         "trained, in a .npy, .npz or .pt file, or a folder of .npy files")
    command.add_argument("--weights", metavar="FILE", help="a state_dict to load into your network, .pt or .safetensors")
    command.add_argument("out", metavar="OUT", help="the file to write; a description goes beside it")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; 2 for what is wrong with one's own network or its images, in one sentence."""
    if not (":" in args.model or args.model.endswith(".py") or args.calibration or args.weights):
        return of_the_zoo(args)
    try:
        check_own(args.model, "--calibration and --weights")
        if not args.calibration:
            raise ValueError(tr("calibration images are needed for a network of your own: --calibration images.npy, training "
                                "images (n, ...)."))
        from qlab.lab.exporting import export_own

        print(export_own(args.model, args.calibration, args.out, args.to, args.weights))
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("QLAB_TRACEBACK"):
            raise
        print("qlab:", one_line(error), file=sys.stderr)
        return 2
    print(tr("{out}.json says what it holds.", out=args.out))
    return 0


def check_own(model: str, options: str) -> None:
    """Raises ValueError where the options of one's own network are given with one of the zoo."""
    from qlab.nets.models import MODELS

    if model in MODELS:
        raise ValueError(tr("{model} is a network of the zoo, which brings its weights and its images: leave out {options}.", model=model,
                            options=options))


def of_the_zoo(args: argparse.Namespace) -> int:
    from qlab.nets.models import MODELS

    if args.model not in MODELS:
        raise ValueError(tr("there is no network {model}: choose among {choices}.", model=args.model, choices=", ".join(MODELS)))
    from qlab.deploy.door import where
    from qlab.lab.exporting import export

    description = export(args.model, args.to or where(args.out, None)[1], args.out)
    print(tr("{out}: {network} as {format}, {nbytes:,} bytes; {out}.json says what it holds.",
             out=args.out, network=description.network, format=description.format, nbytes=description.nbytes))
    return 0
