"""Fault injection: one fault after another, between any two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulation.history import History
from simulation.network import Network
from simulation.process import Process
from simulation.weather import Climate


class Nemesis:
    """Injector of the faults that the climate of the run allows; it repairs everything when it is stopped."""

    def __init__(self, network: Network, history: History, climate: Climate, processes: Sequence[Process]) -> None:
        self._network = network
        self._world = network.world
        self._random_float = network.world.random_float
        self._history = history
        self._climate = climate
        self._processes = processes
        self._is_over = False
        network.weather.model_seconds = climate.model_seconds
        self._wait()

    def stop(self) -> None:
        """Inject no more faults, repair what is broken, and restart processes that end."""
        self._is_over = True
        self._network.weather.clear()
        self._keep_repaired()

    def _keep_repaired(self) -> None:
        for process in self._processes:
            self._repair(process)
        self._network.outside.call_later(1, self._keep_repaired)

    def _wait(self) -> None:
        between = self._climate.steps_between_faults
        if self._climate.faults:
            self._world.alarm(self._random_float.randint(1, 2 * between), self._inject_fault)

    def _inject_fault(self) -> None:
        if self._is_over:
            return
        fault = self._random_float.choice(self._climate.faults)
        process = self._random_float.choice(self._processes)
        self._history.note(f"fault {fault}", process.name)
        self._faults()[fault](process)
        self._wait()

    def _faults(self) -> dict[str, Callable[[Process], None]]:
        return {
            "crash": self._crash,
            "stop": self._stop,
            "pause": self._pause,
            "jump": self._jump,
            "cut off": self._cut_off,
            "outage": lambda _: self._weather("store_refuses", self._random_float.choice([0.3, 1.0]), 20),
            "lost answers": lambda _: self._weather("answers_lost", 0.3, 10),
            "slow store": lambda _: self._weather("store_seconds", self._random_float.choice([0.1, 1.0]), 10),
            "silence": lambda _: (
                self._weather("news_lost", self._random_float.choice([0.3, 1.0]), 30),
                self._weather("bells_lost", self._random_float.choice([0.3, 1.0]), 30),
            ),
            "bad models": lambda _: self._weather("models_fail", self._random_float.choice([0.3, 0.9]), 30),
            "no receivers": lambda _: self._weather("receivers_fail", self._random_float.choice([0.3, 1.0]), 30),
        }

    def _crash(self, process: Process) -> None:
        process.kill()
        self._later(10, self._repair, process)

    def _stop(self, process: Process) -> None:
        if process.is_up and not self._is_over:
            process.stop()
            self._later(15, self._repair, process)

    def _pause(self, process: Process) -> None:
        """Pause the process, often until just after its leases have expired; sometimes stop it on resumption."""
        process.loop.pause()
        seconds = self._random_float.choice([1.0, 40.0, self._random_float.uniform(14, 20)])
        self._network.outside.call_later(seconds, self._repair, process)
        if self._random_float.random() < 0.3:
            self._network.outside.call_later(seconds, self._stop, process)

    def _cut_off(self, process: Process) -> None:
        """Cut the process off from the store for a while; it continues to work."""
        process.wire.is_cut = True
        self._later(40, setattr, process.wire, "is_cut", False)

    def _jump(self, process: Process) -> None:
        process.clock.jump(self._random_float.choice([-1, 1]) * self._random_float.expovariate(1 / 600))

    def _weather(self, condition: str, value: float, seconds: float) -> None:
        """Set one condition of the weather to `value` for a while."""
        weather = self._network.weather
        usual = 0.002 if condition.endswith("_seconds") else 0.0
        setattr(weather, condition, value)
        self._later(seconds, setattr, weather, condition, usual)

    def _repair(self, process: Process) -> None:
        """Resume the process if it is paused, and start it if it is dead."""
        if process.loop.is_dead:
            process.start()
        elif process.loop.is_paused:
            process.loop.go_on()
        if self._is_over:
            process.wire.is_cut = False

    def _later(self, seconds: float, callback: Callable[..., object], *args: object) -> None:
        self._network.outside.call_later(self._random_float.uniform(0, seconds), callback, *args)
