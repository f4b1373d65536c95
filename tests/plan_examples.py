"""What the tests of predictions and plans share: a device, an edge, a link, and drawn predictions."""

from types import MappingProxyType

from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.planning.accuracy import Known
from aecnn_deploy.planning.link import Link, bytes_on_link
from aecnn_deploy.planning.plan import Candidate, Plan, PlanSettings, make_plan
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.prediction import LOCAL, SEND, SPLIT, Part, Prediction
from aecnn_deploy.planning.reasons import why_not
from tests.plan_profiles import device_profile, edge_profile, make_manifest

MANIFEST = make_manifest()
DEVICE, EDGE = device_profile(MANIFEST), edge_profile(MANIFEST)
PREDICTOR = Predictor(MANIFEST, DEVICE, EDGE)
LINK = Link(10e6, 4.0)

ms = st.floats(0.0, 1e4, allow_subnormal=False)
sizes = st.floats(1.0, 1e7)
rates = st.floats(1e3, 1e10)
shares = st.floats(0.0, 1.0)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    """Any split, or local computing."""
    if draw(st.booleans()) and draw(st.booleans()):
        return Prediction(LOCAL, MappingProxyType({"local": Part(draw(ms))}))
    sent = draw(sizes)
    stages = {"head": Part(draw(ms)), SEND: Part(bytes_on_link(sent) * 8e3 / 1e6), "tail": Part(draw(ms))}
    coder = draw(st.sampled_from(["raw", "zstd"]))
    return Prediction(SPLIT, MappingProxyType(stages), "v", coder, sent_bytes=sent, link_bytes=bytes_on_link(sent))


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    return Candidate(draw(predictions()), Known(draw(st.none() | shares)), draw(st.booleans()))


settings_drawn = st.builds(PlanSettings, st.none() | st.floats(1e-3, 1e5), st.none() | shares)


def plan(manifest: Manifest = MANIFEST, predictor: Predictor = PREDICTOR, link: Link = LINK, **asked: object) -> Plan:
    return make_plan(manifest, predictor, link, PlanSettings(**asked))  # type: ignore[arg-type]


def reason(made: Plan, label: str) -> str:
    return why_not(next(item for item in made.candidates if item.label == label), made)
