"""Offloading for many devices and several edges: simulator, graph policy, baselines and bounds, and the policy live.

``mec`` is the simulator, ``agent`` the graph policy, ``baselines`` what it is compared with, ``bounds`` what nobody can
exceed, ``droo`` the published test set of another method, ``live`` the policy beside real edges. Only ``agent`` and
``baselines`` know torch: what decides in the field needs numpy and ONNX Runtime.
"""
