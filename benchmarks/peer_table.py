"""The comparison as Markdown, from its result file; and whether it says what must hold."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peer_servers import IMAGE, PEERS, PLANES, SPLIT

OURS = "ours"
_WITHIN = 0.05  # of the best, for whole images
_TITLES = {SPLIT: "Split traffic", IMAGE: "Full offloading: a JPEG of 224 pixels"}

Row = dict[str, Any]


def tables(document: Row) -> str:
    """All tables, with what was asked of them and the marks."""
    parts = []
    for sent, title in _TITLES.items():
        parts += [f"**{title}**, {document['payload_bytes'][sent]:,.0f} bytes of payload an image", ""]
        parts += [*_throughput(document, sent), "", *_latency(document, sent), ""]
    parts += [_words(document), ""]
    return "\n".join(parts)


def verdict(document: Row) -> dict[str, Row]:
    """By what is sent: whether ours is where it must be, and against whom that was decided.

    Split traffic: ahead of every peer in throughput and in p99 at the same rate. Whole images: within 5 % of the best
    in both. Peers that were not measured are not counted; without any of them nothing is met.
    """
    return {sent: _verdict(document, sent) for sent in _TITLES}


def _verdict(document: Row, sent: str) -> Row:
    clients = document["settings"]["clients"][0]
    share = document["settings"]["shares"][-1]
    slack = 0.0 if sent == SPLIT else _WITHIN
    judged: Row = {"met": False}
    for name, phase, key, best in (
        ("images_per_s", f"max-{clients}", "images_per_s", max),
        ("p99_ms", f"common-{share:.0%}", "p99_ms", min),
    ):
        found = {row["server"]: row[key] for row in _rows(document, sent, phase) if row[key] is not None}
        ours, peers = found.pop(OURS, None), found
        if ours is None or not peers:
            return judged
        rival = best(peers, key=lambda each: peers[each])
        ratio = ours / peers[rival]
        met = ratio >= 1 - slack if best is max else ratio <= 1 + slack
        judged[name] = {"ours": ours, "best_peer": rival, "peer": peers[rival], "ratio": round(ratio, 4), "met": met}
    judged["met"] = judged["images_per_s"]["met"] and judged["p99_ms"]["met"]
    return judged


def _throughput(document: Row, sent: str) -> list[str]:
    counts = document["settings"]["clients"] if sent == SPLIT else document["settings"]["clients"][:1]
    head = ["server", *(f"images/s, {count} clients" for count in counts)]
    head += ["its CPU, ms an image", "client's CPU, ms an image", "bytes up", "bytes down"]
    lines = []
    for server, title in _names(document, sent):
        kind = PLANES if server.endswith(PLANES) else sent
        rows = {row["phase"]: row for row in document["rows"] if (row["server"], row["sent"]) == (_base(server), kind)}
        most = rows.get(f"max-{counts[0]}")
        if most is None:
            lines.append([title, *["–"] * (len(head) - 1)])
            continue
        rates = [rows.get(f"max-{count}") for count in counts]
        lines.append(
            [
                title,
                *(f"{each['images_per_s']:.1f}{_star(each)}" if each else "–" for each in rates),
                f"{most['server_cpu_ms_per_image']:.2f}",
                f"{most['client_cpu_ms_per_image']:.2f}",
                f"{most['sent_bytes_per_image']:,.0f}",
                f"{most['received_bytes_per_image']:,.0f}",
            ]
        )
    return _markdown(head, lines)


def _latency(document: Row, sent: str) -> list[str]:
    shares = document["settings"]["shares"]
    phases = [f"own-{share:.0%}" for share in shares] + [f"common-{shares[-1]:.0%}"]
    words = [f"{share:.0%} of its maximum" for share in shares] + [f"{shares[-1]:.0%} of the slowest's maximum"]
    head = ["p50 / p99, ms, at", *words]
    lines = []
    for server, title in _names(document, sent, planes=False):
        rows = {row["phase"]: row for row in document["rows"] if (row["server"], row["sent"]) == (server, sent)}
        lines.append([title, *(_cell(rows.get(phase)) for phase in phases)])
    return _markdown(head, lines)


def _cell(row: Row | None) -> str:
    if row is None or row["p50_ms"] is None:
        return "–"
    return f"{row['p50_ms']:.1f} / {row['p99_ms']:.1f} ({row['rate_hz']:.0f}/s){_star(row)}"


def _star(row: Row) -> str:
    return "*" if row["marks"] or row["wrong"] or row["failures"] else ""


def _words(document: Row) -> str:
    sentences = []
    for server, why in document["missing"].items():
        sentences.append(f"{PEERS[server].title} was not measured, or not to the end: {why.rstrip('.')}.")
    marked = [row for row in document["rows"] if _star(row)]
    if marked:
        why = {mark for row in marked for mark in row["marks"]}
        failed = sum(sum(row["failures"].values()) + row["wrong"] for row in marked)
        told = [*sorted(why), *([f"{failed} requests failed or were wrong"] if failed else [])]
        sentences.append(f"\\* to be doubted: {'; '.join(told)}.")
    sentences += [_sentence(sent, each) for sent, each in document["verdict"].items()]
    return "\n".join(sentences)


def _sentence(sent: str, each: Row) -> str:
    if "p99_ms" not in each:
        return f"{_TITLES[sent]}: nothing to compare with."
    rate, p99 = each["images_per_s"], each["p99_ms"]
    return (
        f"{_TITLES[sent]}: {'met' if each['met'] else 'MISSED'}; throughput {rate['ratio']:.3f} of "
        f"{PEERS[rate['best_peer']].title}, p99 at the same rate {p99['ratio']:.3f} of {PEERS[p99['best_peer']].title}."
    )


def _rows(document: Row, sent: str, phase: str) -> Iterable[Row]:
    return (row for row in document["rows"] if (row["sent"], row["phase"]) == (sent, phase))


def _names(document: Row, sent: str, *, planes: bool = True) -> list[tuple[str, str]]:
    named = [(server, PEERS[server].title) for server in document["settings"]["servers"]]
    if planes and sent == SPLIT:
        with_planes = sorted({row["server"] for row in document["rows"] if row["sent"] == PLANES})
        named += [(f"{server} {PLANES}", f"{PEERS[server].title}, raw planes") for server in with_planes]
    return named


def _base(server: str) -> str:
    return server.partition(" ")[0]


def _markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    join: Callable[[list[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return [join(head), join(["---"] * len(head)), *(join(line) for line in lines)]
