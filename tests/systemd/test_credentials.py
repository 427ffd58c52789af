"""Keys as a systemd credential, from a directory that only root can read."""

from support.machine import Machine

KEYS = "/run/credentials/progressd.service/progressd.keys"
CONFIG = f'[auth]\nrequired = true\nkeys_file = "{KEYS}"\n'


def test_keys_are_read_from_a_credential(machine: Machine) -> None:
    machine.write("/etc/progressd/progressd.toml", '[auth]\nkeys_file = "/etc/credstore/progressd.keys"\n')
    machine.run("mkdir", "-p", "-m", "700", "/etc/credstore")
    secret = machine.run("progressd", "keys", "add", "backup", "--scope", "read").split()[-1]
    machine.run("chmod", "600", "/etc/credstore/progressd.keys")
    machine.write("/etc/progressd/progressd.toml", CONFIG)
    machine.run("systemctl", "start", "progressd.service")
    assert machine.request("GET", "/api/jobs").status == 401
    assert machine.request("GET", "/api/jobs", Authorization=f"Bearer {secret}").status == 200
    pid = machine.state("progressd.service")["MainPID"]
    stranger = ["setpriv", "--reuid", "nobody", "--clear-groups", "cat"]
    assert machine.completed(*stranger, f"/proc/{pid}/root{KEYS}").returncode == 1
