//! Connections of either kind.

use std::fmt;

use machines::link::Address;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Unix,
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Transport::Unix { "unix" } else { "tcp" })
    }
}

impl Transport {
    pub(crate) fn parse(word: &str) -> Self {
        if word == "unix" { Transport::Unix } else { Transport::Tcp }
    }

    /// Where this process can listen.
    pub(crate) fn address(self) -> Address {
        match self {
            Transport::Tcp => Address::Tcp("127.0.0.1:0".to_owned()),
            Transport::Unix => {
                let name = format!("migrate-{}", std::process::id());
                Address::Unix(std::env::temp_dir().join(name))
            }
        }
    }
}
