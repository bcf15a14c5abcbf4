//! The faults of a run, from its seed: replicas are killed or paused, the leader in particular, and the API server restarts.
//!
//! At least one replica serves at nearly all times. Without a replica, `failurePolicy: Fail` proves only that nothing is bound.
//! Each sleep in this file is the length of a fault or the pace between two of them.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::seed::Chance;
use crate::support::guard::Replicas;
use crate::support::{Component, ControlPlane};

/// Longer than the duration of the Lease, which is 15 s.
const LONG_PAUSE: Duration = Duration::from_secs(18);

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    KillTwo,
    KillLeader,
    Pause,
    PauseLeader,
    PauseLong,
    RestartApiServer,
}

/// Inflicts each fault at least once, and then more until the time is over. All replicas are ready when this returns.
pub(super) async fn inflict(
    plane: &ControlPlane,
    replicas: &Replicas,
    mut chance: Chance,
    lasting: Duration,
) -> Vec<String> {
    let mut all = [
        Fault::Kill,
        Fault::KillTwo,
        Fault::KillLeader,
        Fault::Pause,
        Fault::PauseLeader,
        Fault::PauseLong,
        Fault::RestartApiServer,
    ];
    let (start, mut log) = (Instant::now(), Vec::new());
    while start.elapsed() < lasting {
        chance.shuffle(&mut all);
        for fault in all {
            let at = start.elapsed();
            let victims = one(fault, plane, replicas, &mut chance).await;
            log.push(format!("{:.1} s: {fault:?} {victims:?}", at.as_secs_f64()));
            sleep(Duration::from_millis(chance.between(200, 2000))).await;
        }
    }
    replicas.ready().await;
    log
}

async fn one(fault: Fault, plane: &ControlPlane, replicas: &Replicas, chance: &mut Chance) -> Vec<usize> {
    let mut order: Vec<usize> = (0..replicas.count()).collect();
    chance.shuffle(&mut order);
    let short = Duration::from_millis(chance.between(500, 4000));
    match fault {
        Fault::Kill => killed(replicas, &order[..1], short).await,
        Fault::KillTwo => killed(replicas, &order[..2], Duration::from_millis(500)).await,
        Fault::KillLeader => {
            let leader = replicas.leader().await.unwrap_or(order[0]);
            killed(replicas, &[leader], short).await
        }
        Fault::Pause => paused(replicas, order[0], short).await,
        Fault::PauseLeader => {
            let leader = replicas.leader().await.unwrap_or(order[0]);
            paused(replicas, leader, short).await
        }
        // Half of the time the victim leads. When it resumes, another replica leads.
        Fault::PauseLong => {
            let leader = replicas.leader().await.filter(|_| chance.percent(50));
            paused(replicas, leader.unwrap_or(order[0]), LONG_PAUSE).await
        }
        Fault::RestartApiServer => {
            plane.stop_component(Component::ApiServer);
            sleep(short / 4).await;
            plane.start_component(Component::ApiServer);
            plane.ready().await;
            Vec::new()
        }
    }
}

async fn killed(replicas: &Replicas, victims: &[usize], away: Duration) -> Vec<usize> {
    victims.iter().for_each(|victim| replicas.kill(*victim));
    sleep(away).await;
    victims.iter().for_each(|victim| replicas.start_again(*victim));
    victims.to_vec()
}

async fn paused(replicas: &Replicas, victim: usize, away: Duration) -> Vec<usize> {
    replicas.pause(victim);
    sleep(away).await;
    replicas.resume(victim);
    vec![victim]
}
