//! The units that the generators write.

/// A generator, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generator {
    /// Starts the pools; asks for a passphrase if one is needed.
    Setup,
    /// Unlocks the pools by Clevis when the network is up.
    ClevisSetup,
}

/// The initrd modules bring both scripts.
const SETUP_SCRIPT: &str = "/usr/lib/systemd/stratis-rootfs-setup";
const CLEVIS_SCRIPT: &str = "/usr/lib/systemd/stratis-clevis-rootfs-setup";

impl Generator {
    pub(super) fn by_name(name: &str) -> Option<Generator> {
        match name {
            "stratis-setup-generator" => Some(Generator::Setup),
            "stratis-clevis-setup-generator" => Some(Generator::ClevisSetup),
            _ => None,
        }
    }

    pub(super) fn unit_name(self) -> &'static str {
        match self {
            Generator::Setup => "stratis-setup.service",
            Generator::ClevisSetup => "stratis-clevis-setup.service",
        }
    }

    /// The target that wants the unit. The unit of Clevis is wanted by the other one.
    pub(super) fn wanted_by(self) -> Option<&'static str> {
        (self == Generator::Setup).then_some("initrd.target")
    }

    /// The unit that starts these pools.
    ///
    /// The prompt for the passphrase is not ordered after Clevis: if the network did not come up,
    /// the prompt would never appear. Instead the script waits for Clevis, with a limit. For the
    /// same reason a server that is down does not isolate emergency.target; only a pool that is not
    /// started in the end does.
    pub(super) fn unit(self, pools: &[String]) -> String {
        let pools = pools.join(" ");
        let (program, purpose, script, order) = match self {
            Generator::Setup => (
                "stratis-setup-generator",
                "setup for Stratis root filesystem",
                SETUP_SCRIPT,
                "OnFailure=emergency.target\n\
                 OnFailureJobMode=isolate\n\
                 Wants=stratisd-min.service systemd-ask-password-console.path stratis-clevis-setup.service\n\
                 After=paths.target systemd-ask-password-console.path stratisd-min.service\n\
                 Before=initrd.target shutdown.target\n",
            ),
            Generator::ClevisSetup => (
                "stratis-clevis-setup-generator",
                "setup for Stratis root filesystem using Clevis",
                CLEVIS_SCRIPT,
                "Wants=stratisd-min.service network-online.target\n\
                 After=stratisd-min.service network-online.target\n\
                 Before=shutdown.target\n",
            ),
        };
        format!(
            "# Written by {program}.\n\
             [Unit]\n\
             Description={purpose}\n\
             Documentation=man:stratisd(8)\n\
             SourcePath=/proc/cmdline\n\
             DefaultDependencies=no\n\
             Conflicts=shutdown.target\n\
             {order}\
             \n\
             [Service]\n\
             Type=oneshot\n\
             RemainAfterExit=yes\n\
             Environment='STRATIS_ROOTFS_UUID={pools}'\n\
             ExecStart={script}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_names_are_generators() {
        assert_eq!(Generator::by_name("stratis-setup-generator"), Some(Generator::Setup));
        assert_eq!(Generator::by_name("stratis-clevis-setup-generator"), Some(Generator::ClevisSetup));
        for name in ["", "stratis-generator", "setup-generator"] {
            assert_eq!(Generator::by_name(name), None, "{name}");
        }
    }

    /// The service asks at once and fails where nothing is to be asked, or there is no console yet. Its
    /// path unit starts it when a prompt appears.
    #[test]
    fn the_prompt_is_shown_on_request() {
        let setup = Generator::Setup.unit(&["7f951e31-059b-48bd-ba8c-4fd0405974e5".to_owned()]);
        assert!(setup.contains("systemd-ask-password-console.path"), "{setup}");
        assert!(!setup.contains("systemd-ask-password-console.service"), "{setup}");
    }

    #[test]
    fn a_failed_clevis_isolates_nothing() {
        let pools = ["7f951e31-059b-48bd-ba8c-4fd0405974e5".to_owned()];
        let (setup, clevis) = (Generator::Setup.unit(&pools), Generator::ClevisSetup.unit(&pools));
        assert!(setup.contains("OnFailure=emergency.target") && !clevis.contains("OnFailure"));
        assert!(!clevis.contains("Before=stratis-setup.service") && !setup.contains("network-online"));
    }
}
