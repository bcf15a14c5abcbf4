//! Why a claim to steer does not count. Owns the wording of [`Doubt`]; [`crate::capacity::node::presence`] decides.

use std::fmt;

use crate::capacity::node::presence::{Absence, Doubt};

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = &self.pod;
        match &self.why {
            Absence::Gone => write!(f, "the pod {pod} of its agent is gone, or has not been seen yet"),
            Absence::OtherNode(node) => write!(f, "the pod {pod}, which its agent names as its own, is on node {node}"),
            Absence::Deleting => write!(f, "the pod {pod} of its agent is being deleted"),
            Absence::NotRunning(why) if why.is_empty() => {
                write!(f, "the container of its agent in pod {pod} does not run")
            }
            Absence::NotRunning(why) => write!(f, "the container of its agent in pod {pod} does not run ({why})"),
            Absence::Unnamed => write!(f, "its agent in pod {pod} has not yet reported which container it runs in"),
            Absence::Restarted => {
                write!(f, "the container of its agent in pod {pod} was started again, and has not reported since")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::pod::PodName;

    #[test]
    fn each_sentence_names_the_pod_and_what_is_wrong_with_it() {
        let pod = PodName { namespace: "vramguard-agent".into(), name: "vramguard-agent-x".into() };
        let of = |why| Doubt { pod: pod.clone(), why }.to_string();
        for (why, part) in [
            (Absence::Gone, "is gone"),
            (Absence::OtherNode("b".into()), "is on node b"),
            (Absence::Deleting, "is being deleted"),
            (Absence::NotRunning("".into()), "does not run"),
            (Absence::NotRunning("CrashLoopBackOff".into()), "does not run (CrashLoopBackOff)"),
            (Absence::Unnamed, "has not yet reported which container"),
            (Absence::Restarted, "was started again"),
        ] {
            let text = of(why);
            assert!(text.contains(r#"pod "vramguard-agent/vramguard-agent-x""#) && text.contains(part), "{text}");
        }
    }
}
