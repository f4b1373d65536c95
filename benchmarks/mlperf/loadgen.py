"""The one module that knows ``mlperf_loadgen``, a C++ library without types: its settings, a test, an answer."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.optional import require
from benchmarks.mlperf.confs import MODEL, check_conf
from benchmarks.mlperf.settings import Mode, Scenario

Query: TypeAlias = tuple[int, int]  # LoadGen's id for the answer, and the sample's index
Setting: TypeAlias = int | float

ANSWER_BYTES = 4  # the class's index: an int32, as MLPerf's own image classification answers

_MODES: Mapping[Mode, str] = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
_NO_AUDIT = ""  # and not audit.config of whatever folder this runs in


def loadgen_module() -> Any:
    """LoadGen. Raises MissingExtraError."""
    return require("mlperf_loadgen", why="MLPerf's tests", extra="dev")


class Responder:
    """Tells LoadGen the classes of samples; from any thread."""

    def __init__(self) -> None:
        module = loadgen_module()
        self._response, self._complete = module.QuerySampleResponse, module.QuerySamplesComplete

    def answer(self, response_id: int, index: int) -> None:
        """The sample of ``response_id`` is of the class ``index``. LoadGen copies it before this returns."""
        data = array("i", (index,))
        address, _ = data.buffer_info()
        self._complete([self._response(response_id, address, ANSWER_BYTES)])


class Library:
    """LoadGen's view of the samples (a QSL): how many there are, how many fit in memory, and what loads them."""

    def __init__(
        self,
        count: int,
        fitting: int,
        load: Callable[[Sequence[int]], None],
        unload: Callable[[Sequence[int]], None],
    ) -> None:
        self.count, self.fitting, self.load, self.unload = count, fitting, load, unload


class LoadGen:
    """LoadGen's settings for one scenario, and its tests with them.

    One for a process: LoadGen reads the mlperf.conf that it has built in at its first configuration only, and so a
    second scenario would lack it. Raises SettingsError: ``conf`` is not as LoadGen reads it, or this process had one
    before. MissingExtraError.
    """

    def __init__(self, scenario: Scenario, conf: Path) -> None:
        self._module = loadgen_module()
        self._settings = self._module.TestSettings()
        check_conf(conf)
        status = self._settings.FromConfig(str(conf), MODEL, scenario)
        if status:
            raise SettingsError(f"LoadGen cannot read {conf}: status {status}")
        if not self._settings.qsl_rng_seed:
            raise SettingsError("LoadGen has no seeds: it reads its mlperf.conf once in a process; start another one")
        self._settings.scenario = getattr(self._module.TestScenario, scenario)

    def change(self, changes: Mapping[str, Setting]) -> None:
        """Set attributes of LoadGen's TestSettings. Raises SettingsError: there is no such attribute."""
        for name, value in changes.items():
            if not hasattr(self._settings, name):
                raise SettingsError(f"LoadGen has no setting {name!r}; it is another release than the one of the files")
            setattr(self._settings, name, value)

    def settings(self) -> dict[str, Setting]:
        """Every setting that is a number, as LoadGen has it."""
        names = [name for name in dir(self._settings) if not name.startswith("_")]
        values = {name: getattr(self._settings, name) for name in names}
        return {name: value for name, value in values.items() if isinstance(value, int | float)}

    def run(self, mode: Mode, folder: Path, library: Library, issue: Callable[[list[Query]], None]) -> None:
        """One test, from this thread; its logs are in ``folder`` afterwards.

        ``issue`` is called with each query's samples, by a thread that must not be held up; each sample is answered by
        a ``Responder``. What ``issue`` raises would end this process without a word, so it must raise nothing.
        """
        module = self._module
        self._settings.mode = getattr(module.TestMode, _MODES[mode])
        output = module.LogOutputSettings()
        output.outdir = str(folder)
        output.copy_summary_to_stdout = False
        log = module.LogSettings()
        log.log_output, log.enable_trace = output, False
        folder.mkdir(parents=True, exist_ok=True)

        def issue_query(samples: Any) -> None:
            issue([(sample.id, sample.index) for sample in samples])

        system = module.ConstructSUT(issue_query, lambda: None)
        samples = module.ConstructQSL(library.count, library.fitting, library.load, library.unload)
        try:
            module.StartTestWithLogSettings(system, samples, self._settings, log, _NO_AUDIT)
        finally:
            module.DestroyQSL(samples)
            module.DestroySUT(system)
