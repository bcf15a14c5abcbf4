//! Takeovers of a device plugin that registers with the kubelet itself.

use super::*;

const ALLOWS: Option<(u32, u32)> = Some((1, 37));

/// A kubelet that keeps several registrations, the plugin registered with it, and an agent that may take over.
async fn stage(version: Option<(u32, u32)>) -> Stage {
    let mut stage = Stage::new(|config| {
        config.takeover = true;
        config.hold = Duration::from_millis(600);
    });
    stage.kubelet.endpoints.lock().stack = true;
    stage.agent.kubelet_version.send_replace(version);
    stage.plugin.serve();
    stage.plugin.register_with_kubelet(&stage.kubelet).await;
    stage
}

impl Stage {
    async fn taken_over() -> Stage {
        let stage = stage(ALLOWS).await;
        stage.steers().await;
        stage
    }

    async fn steers(&self) {
        until("the health", || self.agent.health.borrow().steers()).await;
        assert!(self.asks_agent(), "{:?}", self.kubelet.endpoints.lock());
    }

    fn asks_agent(&self) -> bool {
        self.kubelet.endpoints.lock().asked.as_ref().is_some_and(|asked| asked.starts_with("vramguard-"))
    }

    async fn restart_plugin(&mut self) {
        self.plugin.stop();
        until("the end of the plugin", || !self.kubelet.endpoints.lock().connected.contains(&registration().endpoint))
            .await;
        self.plugin.serve();
        self.plugin.register_with_kubelet(&self.kubelet).await;
    }

    fn missing(&self) -> String {
        self.agent.health.borrow().steering().missing.unwrap_or_default()
    }

    /// Asserts that from now on the agent claims to steer only while the kubelet asks it.
    fn watches_claims(&self) -> JoinHandle<()> {
        let (health, endpoints) = (self.agent.health.clone(), self.kubelet.endpoints.clone());
        tokio::spawn(async move {
            let mut false_since: Option<Instant> = None;
            loop {
                let asks_agent = endpoints.lock().asked.as_ref().is_some_and(|asked| asked.starts_with("vramguard-"));
                if health.borrow().steers() && !asks_agent {
                    // The end of a stream takes a moment to be seen.
                    let since = *false_since.get_or_insert_with(Instant::now);
                    assert!(since.elapsed() < Duration::from_millis(150), "{:?}", health.borrow());
                } else {
                    false_since = None;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_registers_with_the_kubelet_is_steered_without_a_change_of_it() {
    let stage = Stage::taken_over().await;
    for (name, gpu) in [("on-a", "GPU-a::0"), ("on-b", "GPU-b::0")] {
        stage.kubelet.admit(name);
        assert_eq!(stage.ask().await.0, [gpu]);
    }
    let sockets: Vec<String> = stage.kubelet.registered.lock().iter().map(|request| request.endpoint.clone()).collect();
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    assert_eq!(sockets[0], "nvidia-gpu.sock");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_has_not_registered_is_waited_for() {
    let mut stage = Stage::new(|config| config.takeover = true);
    stage.kubelet.endpoints.lock().stack = true;
    stage.agent.kubelet_version.send_replace(ALLOWS);
    stage.plugin.serve();
    until("the reason", || stage.missing().contains("has to register first")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stage.kubelet.registered.lock().is_empty(), "the plugin would be the newest");
    stage.plugin.register_with_kubelet(&stage.kubelet).await;
    stage.steers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_starts_again_is_taken_over_again_and_no_claim_outlives_it() {
    let mut stage = Stage::taken_over().await;
    let claims = stage.watches_claims();
    for _ in 0..3 {
        stage.restart_plugin().await;
        until("the end of the claim", || !stage.missing().is_empty()).await;
        stage.steers().await;
        stage.kubelet.admit("on-a");
        assert_eq!(stage.ask().await.0, ["GPU-a::0"]);
    }
    assert!(!claims.is_finished(), "{:?}", claims.await);
    let agents: Vec<String> = stage.kubelet.registered.lock().iter().map(|request| request.endpoint.clone()).collect();
    let agents: Vec<&String> = agents.iter().filter(|endpoint| endpoint.starts_with("vramguard-")).collect();
    let names: std::collections::BTreeSet<_> = agents.iter().collect();
    assert_eq!(names.len(), agents.len(), "each registration has a new name: {agents:?}");
    assert_eq!(stage.kubelet.endpoints.lock().connected.len(), 2, "the older registrations have ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_starts_again_has_the_agent_after_the_plugin() {
    let mut stage = Stage::taken_over().await;
    let claims = stage.watches_claims();
    stage.kubelet.restart().await;
    until("the end of the claim", || !stage.agent.health.borrow().steers()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(stage.kubelet.endpoints.lock().connected.len(), 0, "the plugin has not registered yet");
    stage.plugin.stop();
    stage.plugin.serve();
    stage.plugin.register_with_kubelet(&stage.kubelet).await;
    stage.steers().await;
    assert!(!claims.is_finished(), "{:?}", claims.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_leaves_the_plugin_to_the_kubelet() {
    let stage = Stage::taken_over().await;
    stage.agent.stop.cancel();
    assert_eq!(stage.agent.task.await.unwrap().unwrap(), Ended::Stopped);
    until("the plugin", || stage.kubelet.endpoints.lock().connected == ["nvidia-gpu.sock"]).await;
    assert_eq!(stage.kubelet.healthy().map(|ids| ids.len()), Some(4), "the node keeps its devices");
    assert_eq!(stage.kubelet.registered.lock().len(), 2, "nothing is registered for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_stays_away_is_left_to_the_kubelet_until_it_is_back() {
    let mut stage = Stage::taken_over().await;
    stage.plugin.stop();
    until("the end of the registration", || stage.kubelet.healthy().is_none()).await;
    stage.plugin.serve();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stage.kubelet.healthy().is_none(), "it has not registered");
    stage.plugin.register_with_kubelet(&stage.kubelet).await;
    stage.steers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_waits_for_the_end_of_the_first() {
    let stage = Stage::taken_over().await;
    let mut config = Config::new(stage.kubelet.directory.clone());
    config.takeover = true;
    let second = start(config, node(&[]), unread());
    second.kubelet_version.send_replace(ALLOWS);
    assert_eq!(stage.agent.task.await.unwrap().unwrap(), Ended::Replaced);
    until("the health", || second.health.borrow().steers()).await;
    let endpoints = stage.kubelet.endpoints.lock();
    assert_eq!(endpoints.connected.len(), 2, "{endpoints:?}");
    assert_eq!(endpoints.asked.as_ref(), endpoints.connected.last(), "{endpoints:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allocation_that_bypasses_the_agent_withdraws_the_claim_until_it_has_registered_again() {
    let stage = Stage::taken_over().await;
    stage.kubelet.admit("on-a");
    let ids = stage.ask().await.0;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    stage.endpoint().allocate(id_list(&ids)).await.unwrap();
    stage.kubelet.record(&[("by-the-agent", ids[0])]);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(stage.kubelet.registered.lock().len(), 2, "nothing was bypassed");

    // The kubelet chose the plugin, for whatever reason.
    stage.kubelet.endpoints.lock().asked = Some("nvidia-gpu.sock".to_owned());
    stage.kubelet.record(&[("by-the-agent", ids[0]), ("by-the-plugin", "GPU-b::1")]);
    until("the end of the claim", || !stage.agent.health.borrow().steers()).await;
    until("another registration", || stage.kubelet.registered.lock().len() == 3).await;
    stage.steers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_kubelet_is_not_taken_over_and_the_reason_is_told() {
    for (version, expected) in [(Some((1, 36)), "the kubelet is v1.36"), (None, "version of the kubelet is not known")]
    {
        let stage = stage(version).await;
        until("the reason", || stage.missing().contains(expected)).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        assert_eq!(stage.kubelet.registered.lock().len(), 1, "only the plugin registered");
        assert!(!stage.agent.health.borrow().steering().begun);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_turns_out_to_be_older_gets_its_plugin_back() {
    let stage = Stage::taken_over().await;
    // Its successor is older, and has replaced the plugin by the agent.
    stage.kubelet.endpoints.lock().stack = false;
    stage.agent.kubelet_version.send_replace(Some((1, 36)));
    until("the plugin's registration", || stage.kubelet.registered.lock().last() == Some(&registration())).await;
    until("the plugin's list", || stage.kubelet.healthy().is_some_and(|ids| ids.len() == 4)).await;
    until("the reason", || stage.missing().contains("the kubelet is v1.36")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_with_the_variable_registers_with_the_agent_also_where_takeovers_are_allowed() {
    let mut stage = Stage::new(|config| config.takeover = true);
    stage.kubelet.endpoints.lock().stack = true;
    stage.agent.kubelet_version.send_replace(ALLOWS);
    stage.plugin.serve();
    stage.plugin.register().await;
    stage.steers().await;
    stage.plugin.stop();
    until("the end of the plugin", || !stage.agent.health.borrow().steers()).await;
    stage.plugin.serve();
    stage.plugin.register().await;
    stage.steers().await;
    assert_eq!(stage.kubelet.registered.lock().len(), 1, "the kubelet noticed nothing");

    // Without the variable, it registers with the kubelet from then on.
    stage.plugin.stop();
    until("the end of the plugin", || !stage.agent.health.borrow().steers()).await;
    stage.plugin.serve();
    stage.plugin.register_with_kubelet(&stage.kubelet).await;
    let claims = stage.watches_claims();
    until("another registration", || stage.kubelet.registered.lock().len() == 3).await;
    stage.steers().await;
    assert!(!claims.is_finished(), "{:?}", claims.await);
}

/// A kubelet that keeps several registrations, and a plugin that registered with an agent that may not take over.
async fn with_the_variable(version: Option<(u32, u32)>, change: impl FnOnce(&mut Config)) -> Stage {
    let mut stage = Stage::new(change);
    stage.kubelet.endpoints.lock().stack = true;
    stage.agent.kubelet_version.send_replace(version);
    stage.plugin.serve();
    stage.plugin.register().await;
    stage.steers().await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_takeover_too_no_claim_outlives_the_variable_of_the_plugin() {
    for version in [ALLOWS, None] {
        let mut stage = with_the_variable(version, |_| {}).await;
        let claims = stage.watches_claims();
        stage.plugin.stop();
        until("the end of the plugin", || !stage.missing().is_empty()).await;
        stage.plugin.serve();
        stage.plugin.register().await;
        stage.steers().await;

        // Without the variable, it registers with the kubelet, which asks it from then on.
        stage.restart_plugin().await;
        until("the reason", || stage.missing().contains("may have registered with the kubelet after the agent")).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        assert!(!stage.agent.health.borrow().steers(), "{version:?}");
        assert!(!stage.asks_agent());

        // With the variable again.
        stage.plugin.stop();
        until("the end of its registration", || stage.asks_agent()).await;
        stage.plugin.serve();
        stage.plugin.register().await;
        stage.steers().await;
        assert!(!claims.is_finished(), "{:?}", claims.await);
        claims.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_plugin_that_has_registered_with_the_kubelet_since_is_not_taken_for_steered() {
    let mut stage = with_the_variable(ALLOWS, |config| config.at_stop = AtStop::End).await;
    stage.agent.stop.cancel();
    until("the end of the agent", || stage.agent.task.is_finished()).await;
    stage.restart_plugin().await;

    let again = start(Config::new(stage.kubelet.directory.clone()), node(&[]), unread());
    again.kubelet_version.send_replace(ALLOWS);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(!again.health.borrow().steering().begun, "{:?}", again.health.borrow());
    assert!(!stage.asks_agent(), "nothing was taken over");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_takeover_too_an_allocation_that_bypasses_the_agent_makes_it_register_again() {
    let stage = with_the_variable(ALLOWS, |_| {}).await;
    // As after a hand-back, which the kubelet keeps.
    stage.plugin.register_with_kubelet(&stage.kubelet).await;
    stage.kubelet.record(&[("by-the-plugin", "GPU-b::1")]);
    until("the end of the claim", || !stage.agent.health.borrow().steers()).await;
    until("another registration", || stage.kubelet.registered.lock().len() == 3).await;
    stage.steers().await;
    let sockets = stage.kubelet.endpoints.lock().connected.clone();
    assert_eq!(sockets.len(), 2, "the older registration has ended: {sockets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_the_kubelet_still_has_is_not_handed_back_again() {
    let stage = with_the_variable(ALLOWS, |_| {}).await;
    stage.agent.stop.cancel();
    assert_eq!(stage.agent.task.await.unwrap().unwrap(), Ended::Stopped);
    until("the hand-back", || stage.kubelet.endpoints.lock().connected == ["nvidia-gpu.sock"]).await;

    let again = start(Config::new(stage.kubelet.directory.clone()), node(&[]), unread());
    again.kubelet_version.send_replace(ALLOWS);
    until("the health", || again.health.borrow().steers()).await;
    again.stop.cancel();
    assert_eq!(again.task.await.unwrap().unwrap(), Ended::Stopped);
    until("the plugin", || stage.kubelet.endpoints.lock().connected == ["nvidia-gpu.sock"]).await;
    let registered = stage.kubelet.registered.lock().iter().filter(|request| **request == registration()).count();
    assert_eq!(registered, 1, "a kubelet that is told twice loses track of the plugin");
    assert_eq!(stage.kubelet.healthy().map(|ids| ids.len()), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_until_the_record_of_the_kubelet_could_be_read_after_the_registration() {
    let stage = stage(None).await;
    std::fs::write(stage.kubelet.directory.checkpoint(), "{").unwrap();
    stage.agent.kubelet_version.send_replace(ALLOWS);
    until("the reason", || stage.missing().contains("its record of devices cannot be read")).await;
    until("the registration", || stage.asks_agent()).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(!stage.agent.health.borrow().steers(), "an allocation by the plugin may be in the record");
    stage.kubelet.record(&[("by-the-plugin", "GPU-b::1")]);
    stage.steers().await;

    // What was known stays known while the record cannot be read.
    std::fs::write(stage.kubelet.directory.checkpoint(), "{").unwrap();
    until("the end of the claim", || !stage.agent.health.borrow().steers()).await;
    assert_eq!(stage.kubelet.registered.lock().len(), 2);
    stage.kubelet.record(&[("by-the-plugin", "GPU-b::1")]);
    stage.steers().await;
    assert_eq!(stage.kubelet.registered.lock().len(), 2, "nothing was bypassed");
}

#[tokio::test(flavor = "multi_thread")]
async fn allocations_that_bypass_an_overtaken_agent_do_not_keep_it_from_steering_again() {
    // The agent takes over, and the plugin goes on to be asked until it has registered again.
    let stage = Stage::taken_over().await;
    let mut bypassed = Vec::new();
    let mut bypass = |stage: &Stage| {
        bypassed.push(format!("bypass-{}", bypassed.len()));
        let records: Vec<(&str, &str)> = bypassed.iter().map(|name| (name.as_str(), "GPU-b::1")).collect();
        stage.kubelet.record(&records);
    };
    stage.kubelet.endpoints.lock().asked = Some("nvidia-gpu.sock".to_owned());
    until("another registration", || {
        let has_registered = stage.kubelet.registered.lock().len() == 3;
        if !has_registered {
            bypass(&stage);
        }
        has_registered
    })
    .await;
    stage.steers().await;

    // The agent may not take over, and the plugin is asked until it registers with the agent again.
    let mut stage = with_the_variable(ALLOWS, |_| {}).await;
    stage.restart_plugin().await;
    until("the reason", || stage.missing().contains("may have registered with the kubelet after the agent")).await;
    stage.kubelet.record(&[("by-the-plugin", "GPU-b::1")]);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(!stage.agent.health.borrow().steers());
    stage.plugin.stop();
    until("the end of its registration", || stage.asks_agent()).await;
    stage.plugin.serve();
    stage.plugin.register().await;
    stage.steers().await;
}
