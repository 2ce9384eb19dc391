//! The gRPC health protocol: `grpc.health.v1.Health/Check`.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use super::check::Verdict;

const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn check(host: &str, port: i32, service: &str, timeout: Duration) -> Verdict {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, ask(&address, service)).await {
        Ok(Ok(SERVING)) => Verdict::Passed,
        Ok(Ok(status)) => {
            Verdict::Failed(format!("service unhealthy (responded with {})", status_name(status)))
        }
        Ok(Err(message)) => Verdict::Failed(message),
        Err(_) => {
            let limit = timeout.as_secs();
            Verdict::Failed(format!("timeout: failed to connect service \"{address}\" within {limit}s"))
        }
    }
}

async fn ask(address: &str, service: &str) -> Result<i32, String> {
    let text = |e: &(dyn std::error::Error + 'static)| crate::api::chain(e);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| text(&e))?;
    let channel = endpoint.connect().await.map_err(|e| format!("error: {}", text(&e)))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|e| text(&e))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let answer = client.unary(request, path, codec).await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().status),
        Err(status) => Err(format!("error: health rpc probe failed: {}", status.message())),
    }
}

fn status_name(status: i32) -> &'static str {
    match status {
        SERVING => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}
