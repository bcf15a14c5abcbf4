//! A device plugin that registers with the kubelet itself, and the agent after it. Owns when a registration of the agent is
//! the newest one, and the look at what shows that it is not. That look is needed without a takeover too: on a kubelet that
//! keeps two registrations, a plugin that no longer registers with the agent takes its place.
//!
//! The kubelet uses the newest registration of a resource. When any of them ends, it uses any of those that are left, so
//! the agent never has two: it ends the last one, and registers anew when the plugin is the only one. The plugin has
//! registered if the kubelet then lists its devices.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message as _;
use tokio::time::{Instant, sleep, timeout};

use super::directory::FileId;
use super::plugin::{Plugin, Source};
use super::{Shared, WaitsFor};
use crate::agent::kubelet::checkpoint;
use crate::agent::kubelet::messages::ListAndWatchResponse;
use crate::k8s::checkpoint::{Checkpoint, CheckpointEntry};

/// Pause after the plugin has answered, before the agent's registration ends. A plugin that has started registers within
/// milliseconds, and the node has no devices if the agent ends before that.
const SETTLE: Duration = Duration::from_millis(250);
/// Pause between looks at what the kubelet lists.
const POLL: Duration = Duration::from_millis(50);
/// The same once a look has been in vain for [`EAGER`].
const LATER_POLL: Duration = Duration::from_millis(500);
/// How long looks follow each other soon.
const EAGER: Duration = Duration::from_secs(10);
/// Time between two answers of the kubelet that must agree. A kubelet that answers twice has processed the end of the last
/// registration.
const BETWEEN: Duration = Duration::from_millis(100);
/// The number of answers that must show a registration of the plugin before it is not repeated.
const LOOKS: u32 = 3;
/// Time between two of them. Together they take longer than the kubelet to process the end of the agent's stream.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// Time limit for all of them. The time limit of the hand-back has room for it.
const ALL_LOOKS: Duration = Duration::from_secs(2);
/// Time limit of one answer.
const ANSWER: Duration = Duration::from_secs(2);

impl Plugin {
    /// Whether the plugin registers with the kubelet.
    pub(super) fn is_found(&self) -> bool {
        self.announced.borrow().source == Source::Found
    }

    /// Notes that the plugin may have registered with the kubelet after the agent, or is about to.
    pub(super) fn may_be_newest(&self) {
        if self.shared.kubelet().may_keep_both() {
            self.overtaken.send_modify(|times| *times += 1);
            self.shared.update_health(&self.resource.0, |health| health.overtaken = true);
        }
    }

    /// Takes the socket of a plugin that registered with the agent into account: `registered` is the one at that time, and
    /// `now` the one that exists. Another one is of a plugin that has started since, and it may register with the kubelet.
    pub(super) fn look_at_socket(&self, registered: Option<FileId>, now: Option<FileId>) {
        let Some(socket) = now else { return };
        let health = self.shared.outputs.health.borrow().resources.get(self.resource.0.as_str()).cloned();
        let overtaken = health.is_some_and(|health| health.overtaken);
        if registered != now {
            if !overtaken {
                self.may_be_newest();
            }
        } else if overtaken && self.is_connected_by(socket) && !self.bypassed.load(Ordering::Relaxed) {
            // It is the plugin that registered with the agent, even if its connection was lost meanwhile.
            self.cannot_be_newest();
        }
    }

    /// Notes that the plugin has not registered with the kubelet after the agent.
    pub(super) fn cannot_be_newest(&self) {
        self.bypassed.store(false, Ordering::Relaxed);
        self.shared.update_health(&self.resource.0, |health| health.overtaken = false);
    }

    /// Notes that the kubelet keeps one registration, that of the agent. Nothing can bypass it.
    pub(super) fn is_the_only_one(&self) {
        self.cannot_be_newest();
        self.shared.update_health(&self.resource.0, |health| health.records_unread = None);
    }

    /// Notes that the agent has registered after the plugin, unless the plugin may have done so again since `times`.
    pub(super) async fn is_in_force(&self, times: u64) {
        *self.registered_at.lock() = Some(Instant::now());
        // An answer to a question before the last registration has nothing to do with the next allocation.
        *self.asked.lock() = None;
        self.allocated.lock().begins();
        self.look_at(&read_records(&self.shared).await);
        self.tell_unread();
        self.bypassed.store(false, Ordering::Relaxed);
        // Of a plugin that registers with the agent, its socket decides.
        if self.is_found() {
            let overtaken = *self.overtaken.borrow() != times;
            self.shared.update_health(&self.resource.0, |health| health.overtaken = overtaken);
        }
    }

    /// Waits until the agent has to register again: the plugin may have registered since `times` and answers, or it is away
    /// for good.
    pub(super) async fn must_register_again(&self, times: u64) {
        let (mut overtaken, mut devices) = (self.overtaken.subscribe(), self.devices.subscribe());
        let answers = async {
            _ = overtaken.wait_for(|now| *now != times).await;
            self.connected().await;
            sleep(SETTLE).await;
        };
        tokio::select! {
            () = answers => {}
            // Without the agent, the kubelet decides by what it knows of the plugin itself.
            _ = devices.wait_for(Option::is_none) => {}
        }
    }

    /// Waits until the next registration will be the newest. The last one of this agent must have ended.
    pub(super) async fn will_be_newest(&self) {
        let begun = Instant::now();
        let mut agreed: Option<Instant> = None;
        loop {
            let waits_for = if self.directory.has_other_endpoints().await {
                Some(WaitsFor::OtherAgent)
            } else {
                (!self.kubelet_lists_devices().await).then_some(WaitsFor::Devices)
            };
            self.shared.update_health(&self.resource.0, |health| health.waits_for = waits_for);
            match (waits_for, agreed) {
                (None, Some(since)) if since.elapsed() >= BETWEEN => return,
                (None, Some(_)) => {}
                (None, None) => agreed = Some(Instant::now()),
                (Some(_), _) => agreed = None,
            }
            sleep(if begun.elapsed() < EAGER { POLL } else { LATER_POLL }).await;
        }
    }

    /// Whether the kubelet has a registration of the plugin itself, of an earlier hand-back, now that the agent's has ended.
    ///
    /// Kubelet 1.37 refuses to repeat it, and then no longer notices the end of the plugin.
    pub(super) async fn is_registered_itself(&self) -> bool {
        if !self.shared.kubelet().is_allowed() {
            return false;
        }
        let looks = async {
            for look in 0..LOOKS {
                if look > 0 {
                    sleep(BETWEEN_LOOKS).await;
                }
                if !self.kubelet_lists_devices().await {
                    return false;
                }
            }
            true
        };
        timeout(ALL_LOOKS, looks).await.unwrap_or(false)
    }

    /// Whether the kubelet lists exactly the healthy devices of the plugin. Without a registration of the agent, it has them
    /// from the plugin, and the name of the resource is right.
    async fn kubelet_lists_devices(&self) -> bool {
        let Some(list) = self.devices.borrow().clone() else { return false };
        let Ok(list) = ListAndWatchResponse::decode(list) else { return false };
        let healthy: BTreeSet<String> =
            list.devices.into_iter().filter(|device| device.health == "Healthy").map(|device| device.id).collect();
        let Ok(listed) = self.shared.pod_resources.allocatable(ANSWER).await else { return false };
        let of_resource = listed.devices.into_iter().filter(|devices| self.resource.0 == devices.resource_name);
        let listed: BTreeSet<String> = of_resource.flat_map(|devices| devices.device_ids).collect();
        !healthy.is_empty() && healthy == listed
    }

    /// Takes into account what the kubelet has recorded, or why that cannot be read. Returns the number of allocations that
    /// bypassed the agent.
    fn look_at(&self, recorded: &Result<Checkpoint, String>) -> usize {
        let mut allocated = self.allocated.lock();
        match recorded {
            Ok(recorded) => {
                let record = |entry: &CheckpointEntry| {
                    ((entry.pod.clone(), entry.container.clone()), entry.devices.iter().cloned().collect())
                };
                allocated.recorded(recorded.of(&self.resource).map(record).collect()).len()
            }
            Err(why) => {
                allocated.failed(why);
                0
            }
        }
    }

    /// Tells whether the records are known. What they showed must have been told before, because it may end the claim too.
    fn tell_unread(&self) {
        // A kubelet that turned out to keep one registration is not looked at again.
        let matters = self.shared.kubelet().may_keep_both();
        // Read only while the health is locked: another task may read the records at the same time, and tell that first.
        self.shared.update_health(&self.resource.0, |health| {
            health.records_unread = self.allocated.lock().unread().filter(|_| matters).map(str::to_owned);
        });
    }

    fn has_unread_records(&self) -> bool {
        self.allocated.lock().unread().is_some()
    }
}

/// What the kubelet has recorded, or why that cannot be read. A kubelet without a record has allocated nothing yet.
async fn read_records(shared: &Shared) -> Result<Checkpoint, String> {
    let read = checkpoint::read(&shared.config.kubelet).await;
    read.map(Option::unwrap_or_default).map_err(|error| error.to_string())
}

/// Looks for allocations that the agent did not pass on, if the kubelet has recorded something since the last look that
/// could read it.
pub(super) async fn look_at_records<'p>(
    shared: &Shared,
    plugins: impl Iterator<Item = &'p Plugin> + Clone,
    (last, now): (&mut Option<FileId>, Option<FileId>),
) {
    let were_unread = plugins.clone().any(Plugin::has_unread_records);
    if *last == now && !were_unread {
        return;
    }
    let recorded = read_records(shared).await;
    match &recorded {
        Ok(_) => *last = now,
        Err(why) if !were_unread => tracing::warn!("the kubelet's record of devices cannot be read: {why}"),
        Err(_) => {}
    }
    for plugin in plugins {
        let bypassed = plugin.look_at(&recorded);
        let claims = |health: &super::ResourceHealth| health.registered && !health.overtaken;
        let claimed = shared.outputs.health.borrow().resources.get(plugin.resource.0.as_str()).is_some_and(claims);
        if bypassed > 0 && claimed {
            tracing::warn!(resource = %plugin.resource, bypassed, "the kubelet asked the device plugin in place of the agent");
            shared.outputs.counters.bypassed.inc_by(bypassed as u64);
            plugin.bypassed.store(true, Ordering::Relaxed);
            plugin.may_be_newest();
            if !plugin.is_found() {
                plugin.register_again.notify_one();
            }
        }
        plugin.tell_unread();
    }
}
