"""Inputs of a plan in round numbers, about as two idle cores have them."""

from benchmarks.scaling_settings import Inputs

INPUTS = Inputs(
    receive_answer_s=150e-6,
    beside_s=60e-6,
    tls_receive_answer_s=190e-6,
    messages_per_s_one_core=4000.0,
    decode_s=10e-6,
    batch_s=[(1, 5e-3), (2, 8.4e-3), (4, 15.3e-3), (8, 29e-3), (16, 57.5e-3)],
    noise=[0.98, 1.0, 1.02],
    tail_cores=2,
    connect_s=1e-3,
    tls_connect_s=2.5e-3,
    memory_bytes_per_connection=30e3,
    tls_memory_bytes_per_connection=320e3,
    kept_planes_bytes=28e3,
    process_bytes=180e6,
    sockets_per_connection=1.0,
    received_bytes_per_image=1376.0,
    sent_bytes_per_image=331.0,
    start_s=2.0,
    load_s=1.0,
    series=175,
    scrape_ms=5.0,
    ports=28_232,
    backlog=2048,
    open_files=20_000,
)
