//! One visit to a token server.

use http::{StatusCode, header::AUTHORIZATION};
use reqwest::Url;
use tokio::time::{Instant, sleep};

use super::{
    answer::Answer,
    auth::{self, Token},
    credentials::{Login, Proof},
    error::{Operation, Place, RegistryError, is_passing},
    network::Network,
    transport::{Call, moving, stalled},
};

/// A token server's answer; Azure's are the longest seen, some KiB.
const TOKEN_LIMIT: u64 = 1 << 20;

/// One visit to a token server.
pub(super) struct TokenRequest<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) network: &'a Network,
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
    pub(super) scopes: &'a [String],
    pub(super) login: Option<&'a Login>,
}

impl TokenRequest<'_> {
    /// A token for all scopes, or for the first alone where the server grants no other: what needs the
    /// others, a mount, has another way.
    pub(super) async fn fetch(&self) -> Result<Token, RegistryError> {
        match self.fetch_scopes(self.scopes).await {
            Err(RegistryError::Answered { refusal, .. })
                if self.scopes.len() > 1
                    && refusal.status.is_client_error()
                    && !is_passing(refusal.status) =>
            {
                self.fetch_scopes(&self.scopes[..1]).await
            }
            result => result,
        }
    }

    async fn fetch_scopes(&self, scopes: &[String]) -> Result<Token, RegistryError> {
        let backoff = self.network.options.backoff;
        let mut failures = 0;
        loop {
            let result = self.ask(scopes).await;
            failures += 1;
            match result {
                Err(error)
                    if error.is_passing() && failures < backoff.attempts && error.retry_after().is_none() =>
                {
                    sleep(backoff.delay(failures)).await;
                }
                result => return result,
            }
        }
    }

    async fn ask(&self, scopes: &[String]) -> Result<Token, RegistryError> {
        if let Some(Proof::IdentityToken(token)) = self.login.map(|login| &login.proof) {
            let mut form = vec![
                ("grant_type", "refresh_token".to_owned()),
                ("client_id", "slipway".to_owned()),
                ("scope", scopes.join(" ")),
                ("refresh_token", token.reveal().to_owned()),
            ];
            form.extend(self.service.map(|service| ("service", service.to_owned())));
            let http = self.http(self.realm)?;
            match self.exchange(http.post(self.realm.clone()).form(&form)).await {
                // A token server of before OAuth 2; the refresh token is a password to it.
                Err(error)
                    if matches!(
                        error.status(),
                        Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
                    ) => {}
                result => return result,
            }
        }
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
        }
        let mut request = self.http(&url)?.get(url);
        if let Some(header) = self.login.and_then(auth::basic_or_token) {
            request = request.header(AUTHORIZATION, header);
        }
        self.exchange(request).await
    }

    fn http(&self, url: &Url) -> Result<reqwest::Client, RegistryError> {
        let route = self.network.http(url, &self.call.home);
        route.map_err(|error| self.call.no_route(error))
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Token, RegistryError> {
        let at = Place {
            origin: self.realm.origin().ascii_serialization(),
            operation: Operation::GetToken,
            subject: self.call.repository.name.clone(),
        };
        let idle = self.network.options.timeouts.idle;
        let unreachable = |problem| RegistryError::Unreachable {
            at: at.clone(),
            problem,
        };
        let response = moving(request.send(), None, idle)
            .await
            .ok_or_else(|| unreachable(stalled(idle)))?
            .map_err(|error| self.call.lost(&error.without_url()))?;
        let answer = Answer {
            response,
            at: at.clone(),
            url: self.realm.clone(),
            idle,
        };
        if answer.status() != StatusCode::OK {
            return Err(answer.refused().await);
        }
        let body = answer.bytes(TOKEN_LIMIT).await?;
        Token::read(&body, Instant::now()).ok_or_else(|| RegistryError::Protocol {
            at,
            problem: "the token server's answer has no token".to_owned(),
        })
    }
}
