"""Measured energy: one meter a module, found by :func:`open_meter`.

    meter = open_meter()
    with meter.window() as idle:
        time.sleep(10)
    with meter.window() as w:
        for frame in frames:  # one frame is too short: loop for 10 s and more
            runtime.classify(frame)
    print(w.energy_mj, w.rails_mj, w.seconds, w.source, w.unavailable)

| meter | what is in its figure | shortest window | rate |
| --- | --- | --- | --- |
| INA3221 | Jetson Orin Nano and NX: the module's input; AGX Orin: the sum of its supplies | 0.5 s | 50 Hz |
| INA238 | Jetson Thor: the board's input, carrier board included | 0.5 s | 50 Hz |
| NVML | one discrete NVIDIA GPU | 5 s | about 10 Hz |
| RAPL | the packages of an x86 processor | 0.2 s | about 1 kHz |

Other Jetsons' figures never include the carrier board: camera, disk and fan come on top.
"""  # noqa: E501

from dvt_edge.energy.meter import Meter, UnavailableMeter, Window
from dvt_edge.energy.opening import open_meter
from dvt_edge.energy.regression import ExitEnergy, energy_per_exit

__all__ = ["ExitEnergy", "Meter", "UnavailableMeter", "Window", "energy_per_exit", "open_meter"]
