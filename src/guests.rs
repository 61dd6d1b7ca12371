//! What `vmscope guests` prints: the guests of this host that could be watched, and how.

use serde_json::{Value, json};

use crate::engine::driver::{
    qemu::guests::{Running, running},
    xenstore::{Domain, domains},
};

/// What there is on this host.
struct Host {
    qemu: Vec<Running>,
    /// A sentence for each libvirt that could not be asked.
    libvirt: Vec<String>,
    /// `None` where Xen does not run.
    xen: Option<Result<Vec<Domain>, String>>,
}

/// The list as text, or as JSON for scripts.
pub fn list(as_json: bool) -> String {
    let (qemu, libvirt) = running();
    let host = Host { qemu, libvirt, xen: domains() };
    if as_json { format!("{:#}\n", json_of(&host)) } else { text_of(&host) }
}

fn json_of(host: &Host) -> Value {
    let qemu = host.qemu.iter().map(|guest| {
        json!({
            "pid": guest.pid,
            "name": guest.name,
            "qmp": guest.qmp,
            "libvirt": guest.domain.as_ref().map(|domain| {
                json!({ "uri": domain.uri, "uuid": domain.uuid, "running": domain.running })
            }),
            "obstacle": guest.obstacle,
            "command": guest.command,
        })
    });
    let domain = |domain: &Domain| json!({ "id": domain.id, "name": domain.name });
    let xen = match &host.xen {
        None => json!({ "present": false, "domains": [], "error": null }),
        Some(Ok(domains)) => {
            json!({ "present": true, "domains": domains.iter().map(domain).collect::<Vec<_>>(), "error": null })
        }
        Some(Err(why)) => json!({ "present": true, "domains": [], "error": why }),
    };
    json!({ "qemu": qemu.collect::<Vec<_>>(), "libvirt": { "errors": host.libvirt }, "xen": xen })
}

fn text_of(host: &Host) -> String {
    let mut text = String::new();
    if host.qemu.is_empty() {
        text.push_str("No QEMU runs here. Start one with -qmp unix:PATH,server=on,wait=off.\n");
    } else {
        let titles = ["PID", "NAME", "QMP", "WATCH IT WITH"].map(str::to_owned);
        let rows = host.qemu.iter().map(|guest| {
            [
                guest.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
                guest.name.clone().unwrap_or_else(|| "-".into()),
                guest
                    .qmp
                    .first()
                    .cloned()
                    .or_else(|| Some(guest.domain.as_ref()?.uri.clone()))
                    .unwrap_or_else(|| "-".into()),
                guest.command.clone().or_else(|| guest.obstacle.clone()).unwrap_or_default(),
            ]
        });
        text.push_str(&table(&std::iter::once(titles).chain(rows).collect::<Vec<_>>()));
    }
    for error in &host.libvirt {
        text.push_str(&format!("{error}\n"));
    }
    match &host.xen {
        None => text.push_str("No Xen runs here.\n"),
        Some(Err(why)) => text.push_str(&format!("{why}\n")),
        Some(Ok(domains)) => {
            text.push_str("Domains of Xen, which this vmscope cannot watch yet:\n");
            for domain in domains {
                text.push_str(&format!("  {} {}\n", domain.id, domain.name));
            }
        }
    }
    text.push_str("The built-in guest is always there: vmscope demo\n");
    text
}

/// Columns side by side, the last one as it is.
fn table(rows: &[[String; 4]]) -> String {
    let widest = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (pid, name, qmp) = (widest(0), widest(1), widest(2));
    rows.iter().map(|[a, b, c, d]| format!("{a:<pid$}  {b:<name$}  {c:<qmp$}  {d}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::driver::qemu::libvirt::Listed;

    fn host() -> Host {
        let guest = |pid, name: Option<&str>, obstacle: Option<&str>| Running {
            pid: Some(pid),
            name: name.map(str::to_owned),
            qmp: if obstacle.is_some() { Vec::new() } else { vec!["unix:/run/q".into()] },
            domain: None,
            obstacle: obstacle.map(str::to_owned),
            command: obstacle.is_none().then(|| format!("vmscope qemu --pid {pid}")),
        };
        let off = Listed { uri: "qemu:///system".into(), uuid: "u".into(), name: "off".into(), running: false };
        let off = Running {
            name: Some("off".into()),
            domain: Some(off),
            obstacle: Some("shut off".into()),
            ..Running::default()
        };
        Host {
            qemu: vec![guest(7, Some("web"), None), guest(1234, None, Some("no QMP socket")), off],
            libvirt: vec!["asking libvirt at qemu:///session: no".into()],
            xen: Some(Ok(vec![Domain { id: 0, name: "Domain-0".into() }])),
        }
    }

    #[test]
    fn each_guest_has_its_command_or_what_is_in_the_way() {
        assert_eq!(
            text_of(&host()),
            "PID   NAME  QMP             WATCH IT WITH\n\
             7     web   unix:/run/q     vmscope qemu --pid 7\n\
             1234  -     -               no QMP socket\n\
             -     off   qemu:///system  shut off\n\
             asking libvirt at qemu:///session: no\n\
             Domains of Xen, which this vmscope cannot watch yet:\n  0 Domain-0\n\
             The built-in guest is always there: vmscope demo\n"
        );
        let empty = text_of(&Host { qemu: Vec::new(), libvirt: Vec::new(), xen: None });
        assert!(empty.contains("No QEMU runs here") && empty.contains("No Xen runs here"), "{empty}");
    }

    #[test]
    fn scripts_get_the_same_as_json() {
        let json = json_of(&host());
        assert_eq!(json["qemu"][0]["command"], "vmscope qemu --pid 7");
        assert_eq!(json["qemu"][1]["command"], Value::Null);
        assert_eq!(json["qemu"][1]["obstacle"], "no QMP socket");
        assert_eq!(json["qemu"][2]["libvirt"], json!({ "uri": "qemu:///system", "uuid": "u", "running": false }));
        assert_eq!(json["libvirt"]["errors"][0], "asking libvirt at qemu:///session: no");
        assert_eq!(json["xen"]["domains"][0]["name"], "Domain-0");
        assert_eq!(json_of(&Host { qemu: Vec::new(), libvirt: Vec::new(), xen: None })["xen"]["present"], false);
    }
}
