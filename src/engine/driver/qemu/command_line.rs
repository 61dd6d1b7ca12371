//! What a QEMU's command line says of its monitors (QEMU's manual page: `-qmp`, `-mon`, `-chardev`, `-name`, `-uuid`).

use std::path::Path;

use serde_json::Value;

use super::transport::Address;

/// How deep values of an option in JSON are looked for.
const DEEPEST: usize = 8;

/// The value of an option: `NAME,key=value,...`, in which two commas are one that belongs to a value, or JSON.
struct Options {
    /// Keys and values; what has no key has an empty one.
    pairs: Vec<(String, String)>,
}

impl Options {
    fn parse(text: &str) -> Self {
        if text.starts_with('{') {
            let mut pairs = Vec::new();
            leaves(&serde_json::from_str(text).unwrap_or_default(), DEEPEST, &mut pairs);
            return Self { pairs };
        }
        let mut parts = vec![String::new()];
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            if c == ',' && rest.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(c);
            }
        }
        let pair = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (String::new(), part),
        };
        Self { pairs: parts.into_iter().map(pair).collect() }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on: `server=on`, or as before QEMU 6 just `server`.
    fn is_on(&self, key: &str) -> bool {
        self.pairs.iter().any(|(name, value)| {
            (name == key && matches!(value.as_str(), "on" | "yes" | "true" | "y")) || (name.is_empty() && value == key)
        })
    }

    /// The first word, where that has no key.
    fn first(&self) -> Option<&str> {
        self.pairs.first().filter(|(key, _)| key.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Where a character device listens: a Unix socket or a port. A client has no address that we could connect to, nor has
    /// a socket that was handed over as a descriptor.
    fn address(&self) -> Option<Address> {
        if !self.is_on("server") || self.get("fd").is_some() {
            return None;
        }
        match (self.get("path"), self.get("port")) {
            (Some(path), _) if !self.is_on("abstract") => Some(Address::Unix(path.into())),
            (None, Some(port)) => format!("{}:{port}", self.get("host").unwrap_or_default()).parse().ok(),
            _ => None,
        }
    }
}

/// All values of JSON that are no lists or objects, by the key that is nearest to them.
fn leaves(value: &Value, depth: usize, into: &mut Vec<(String, String)>) {
    let Some(object) = value.as_object().filter(|_| depth > 0) else { return };
    for (key, value) in object {
        match value {
            Value::String(text) => into.push((key.clone(), text.clone())),
            Value::Bool(on) => into.push((key.clone(), if *on { "on" } else { "off" }.into())),
            Value::Number(number) => into.push((key.clone(), number.to_string())),
            _ => leaves(value, depth - 1, into),
        }
    }
}

/// The values of an option, which may have one dash or two.
fn values<'a>(arguments: &'a [String], option: &'a str) -> impl Iterator<Item = &'a str> {
    arguments.windows(2).filter_map(move |pair| match pair {
        [name, value] if name.starts_with('-') && name.trim_start_matches('-') == option => Some(value.as_str()),
        _ => None,
    })
}

fn chardev(arguments: &[String], id: &str) -> Option<Options> {
    values(arguments, "chardev").map(Options::parse).find(|options| options.get("id") == Some(id))
}

/// The character devices that QMP is spoken on.
fn monitors(arguments: &[String]) -> impl Iterator<Item = Options> {
    values(arguments, "mon").map(Options::parse).filter(|mon| mon.get("mode") == Some("control")).filter_map(|mon| {
        let id = mon.get("chardev").or_else(|| mon.first())?;
        chardev(arguments, id)
    })
}

/// The address in `-qmp`: `unix:PATH,server=on` and `tcp:HOST:PORT,server=on`, or the id of a character device.
fn short_form(arguments: &[String], value: &str) -> Option<Address> {
    if let Some(id) = value.strip_prefix("chardev:") {
        return chardev(arguments, id)?.address();
    }
    let options = Options::parse(value);
    // `unix:fd=3` has its key behind the colon.
    if options.pairs.iter().any(|(key, _)| key == "unix:fd") || !options.is_on("server") {
        return None;
    }
    match options.first()?.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Some(Address::Unix(path.into())),
        Some(_) => options.address(),
        None => value.parse().ok(),
    }
}

/// Where a QEMU with these arguments, started in this folder, serves QMP.
pub fn qmp_addresses(arguments: &[String], folder: &Path) -> Vec<Address> {
    let short = ["qmp", "qmp-pretty"].into_iter().flat_map(|option| values(arguments, option));
    let short = short.filter_map(|value| short_form(arguments, value));
    let found = short.chain(monitors(arguments).filter_map(|device| device.address()));
    found
        .map(|address| match address {
            Address::Unix(path) => Address::Unix(folder.join(path)),
            other => other,
        })
        .collect()
}

/// Whether somebody who started QEMU holds its QMP by a descriptor, as libvirt and Kata Containers do.
pub fn has_descriptor(arguments: &[String]) -> bool {
    let short = ["qmp", "qmp-pretty"].into_iter().flat_map(|option| values(arguments, option));
    short.map(Options::parse).any(|options| options.get("unix:fd").is_some())
        || monitors(arguments).any(|device| device.get("fd").is_some())
}

/// Whether libvirt has started it: the monitor's device has libvirt's name for it.
pub fn is_libvirts(arguments: &[String]) -> bool {
    uuid(arguments).is_some() && chardev(arguments, "charmonitor").is_some()
}

/// The value of `-uuid`.
pub fn uuid(arguments: &[String]) -> Option<&str> {
    values(arguments, "uuid").next()
}

/// The guest's name: `-name NAME,...` or `-name guest=NAME,...`, as it stands there.
pub fn name(arguments: &[String]) -> Option<String> {
    let options = Options::parse(values(arguments, "name").next()?);
    options.get("guest").or_else(|| options.first()).filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn qmp_is_found_in_every_spelling() {
        let unix = |path: &str| Address::Unix(path.into());
        for (line, want) in [
            ("qemu -m 1G -qmp unix:/run/q,server=on", vec![unix("/run/q")]),
            ("qemu --qmp unix:q,server,nowait", vec![unix("/home/q")]),
            ("qemu -qmp unix:/run/a,,b,server=on", vec![unix("/run/a,b")]),
            ("qemu -qmp unix:path=/run/q,server=on", vec![]),
            ("qemu -qmp tcp:localhost:4444,server", vec![Address::Tcp("localhost:4444".into())]),
            ("qemu -chardev socket,id=m,path=/run/m,server=on -mon chardev=m,mode=control", vec![unix("/run/m")]),
            ("qemu -chardev socket,id=m,path=/run/m,server=on -mon m,mode=control", vec![unix("/run/m")]),
            ("qemu -chardev socket,id=m,path=/run/m,server=on -qmp chardev:m", vec![unix("/run/m")]),
            ("qemu -chardev socket,id=m,path=/run/m,server=on -mon chardev=m,mode=readline", vec![]),
            ("qemu -chardev socket,id=m,fd=23,server=on -mon chardev=m,mode=control", vec![]),
            // A client of somebody else's.
            ("qemu -chardev socket,id=m,path=/run/m,reconnect=5 -mon chardev=m,mode=control", vec![]),
            ("qemu -qmp unix:/run/q", vec![]),
            ("qemu -chardev socket,id=m,path=x,abstract=on,server=on -mon chardev=m,mode=control", vec![]),
            (
                "qemu -chardev {\"id\":\"m\",\"backend\":{\"type\":\"socket\",\"data\":{\"addr\":{\"type\":\"unix\",\"data\":{\"path\":\"/run/m\"}},\"server\":true}}} -mon chardev=m,mode=control",
                vec![unix("/run/m")],
            ),
            ("qemu -qmp stdio", vec![]),
            ("qemu -qmp", vec![]),
            ("qemu -chardev {{ -mon {\"mode\":\"control\",\"chardev\":\"m\"}", vec![]),
        ] {
            assert_eq!(qmp_addresses(&words(line), Path::new("/home")), want, "{line}");
        }
    }

    #[test]
    fn proxmox_has_a_server_and_a_client() {
        let line = words(
            "/usr/bin/kvm -id 100 -name web,debug-threads=on -no-shutdown -chardev \
             socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off -mon chardev=qmp,mode=control -chardev \
             socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 -mon chardev=qmp-event,mode=control -uuid x",
        );
        assert_eq!(qmp_addresses(&line, Path::new("/")), [Address::Unix("/var/run/qemu-server/100.qmp".into())]);
        assert_eq!(name(&line).as_deref(), Some("web"));
        assert!(!has_descriptor(&line) && !is_libvirts(&line));
    }

    #[test]
    fn kata_and_libvirt_hold_descriptors() {
        let kata = words("qemu-system-x86_64 -name sandbox-1 -uuid 7 -qmp unix:fd=3,server=on,wait=off");
        let libvirt = words(
            "qemu -name guest=web,debug-threads=on -uuid f9eaa8b3-8672-4ea4-bac4-4bddd6c96f07 -chardev \
             socket,id=charmonitor,fd=23,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control",
        );
        for line in [&kata, &libvirt] {
            assert_eq!(qmp_addresses(line, Path::new("/")), []);
            assert!(has_descriptor(line));
        }
        assert!(is_libvirts(&libvirt) && !is_libvirts(&kata));
        assert_eq!(uuid(&libvirt), Some("f9eaa8b3-8672-4ea4-bac4-4bddd6c96f07"));
        // With a socket of its own beside libvirt's.
        let own = [&libvirt[..], &words("-qmp unix:/run/own,server=on,wait=off")[..]].concat();
        assert_eq!(qmp_addresses(&own, Path::new("/")), [Address::Unix("/run/own".into())]);
    }

    #[test]
    fn names_are_read_in_both_forms() {
        let of = |line: &str| name(&words(line));
        assert_eq!(of("qemu -name web").as_deref(), Some("web"));
        assert_eq!(of("qemu -m 1G --name web,process=x").as_deref(), Some("web"));
        assert_eq!(of("qemu -name process=x,guest=a,,b,debug-threads=on").as_deref(), Some("a,b"));
        assert_eq!(of("qemu -name process=x"), None);
        assert_eq!(of("qemu -name"), None);
        assert_eq!(of("qemu -name ,x"), None);
    }
}
