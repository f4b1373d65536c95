"""Multi-access edge computing, simulated: scenarios, profiles, links, servers, slots."""
