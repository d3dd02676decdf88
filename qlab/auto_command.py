"""The command `qlab auto`: a network of the zoo, or one's own, within a budget of bytes or a loss of accuracy (qlab.search.auto).

Only the standard library is imported here, as in qlab.cli.
"""

import argparse

from qlab.export_command import check_own

EXAMPLES = """For instance: qlab auto cnn --budget 40KB; or
qlab auto my_module:make_model --weights state.pt --calibration images.npy --labels labels.npy --max-drop 0.5 --out net.safetensors.
The module is imported from the current folder, and runs."""
IMAGES = 8000                                                                               # of the zoo's training set


def add_to(commands) -> None:
    """The command's arguments."""
    command = commands.add_parser("auto", help="find the rounding and the bits for a network under a budget", epilog=EXAMPLES,
                                  description="Quantizes a network's weights, by ways from the cheapest to the dearest, judged on held-out "
                                  "training images; prints what was tried, and why it stopped.")
    command.add_argument("model", metavar="MODEL", help="a network of the zoo, such as depthwise; or your own as my_module:NAME or "
                         "path/to/file.py:NAME, where NAME is a torch.nn.Module, or a class or function that makes one without arguments")
    command.add_argument("--budget", nargs="+", help="bytes of the whole network, with B, KB (1,000), KiB (1,024), MB or MiB: 40KB")
    command.add_argument("--max-drop", type=float, metavar="POINTS", help="instead: percentage points that may be lost")
    command.add_argument("--calibration", metavar="IMAGES", help="for your own network: training images (n, ...), floats scaled as it was "
                         "trained, in a .npy, .npz or .pt file, or a folder of .npy files")
    command.add_argument("--labels", metavar="FILE", help="their classes, (n,), .npy or .pt; without them the float network is the judge")
    command.add_argument("--weights", metavar="FILE", help="a state_dict to load into your network, .pt or .safetensors")
    command.add_argument("--images", type=int, metavar="N", help="for a network of the zoo: how many training images "
                         f"(default: {IMAGES:,})")
    command.add_argument("--folder", help="where trials are kept: the same command goes on there when it was cut off")
    command.add_argument("--out", metavar="FILE", help="write the network there, as safetensors: qlab.nets.ptq.load reads it")
    command.add_argument("--seed", type=int, default=0, help="of the split and of learned rounding (default: 0)")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; 3 where nothing met the demand; 1 for an error, in one sentence."""
    from qlab.lab import searching
    from qlab.search import auto

    zoo = not (":" in args.model or args.model.endswith(".py") or args.calibration or args.weights or args.labels)
    if args.out:
        searching.check_place(args.out)
    try:
        if not zoo:
            check_own(args.model, "--calibration, --labels and --weights")
        if zoo:
            model, calibration = searching.of_the_zoo(args.model, IMAGES if args.images is None else args.images)
        elif not args.calibration:
            raise ValueError("calibration images are needed for a network of your own: --calibration images.npy, training images (n, ...).")
        elif args.images is not None:
            raise ValueError("--images is for a network of the zoo; of your own all calibration images are used.")
        else:
            model, calibration = searching.own(args.model, args.calibration, args.labels, args.weights)
        found = auto.quantize(model, calibration, " ".join(args.budget) if args.budget else None, args.max_drop, args.folder, args.seed)
    except TypeError as error:
        raise ValueError(str(error)) from error
    print(found)
    if zoo:
        print(searching.last_word(model, found))
    if args.out:
        found.quantized.save(args.out)
        print(f"{args.out} holds the network: {found.chosen.nbytes:,} bytes of codes, scales and biases.")
    return 0 if found.met else 3
