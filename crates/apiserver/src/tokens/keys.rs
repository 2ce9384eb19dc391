//! Service account keys: reading PEM of every form upstream reads, signing, verifying, and the key set document.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rcgen::{KeyPair, PublicKeyData as _};
use rsa::pkcs1::{DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _, EncodeRsaPrivateKey as _};
use rsa::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo, X509Certificate};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("no key in the PEM data")]
    Missing,
    #[error("the key is malformed: {0}")]
    Malformed(String),
    #[error("keys of this type are not supported: {0}")]
    Unsupported(String),
    #[error("signing failed")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
    public: PublicKey,
}

#[derive(Clone)]
/// Verifies tokens; an entry of the published key set.
pub struct PublicKey {
    id: String,
    algorithm: Algorithm,
    key: DecodingKey,
    document: Value,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads `RSA PRIVATE KEY`, `EC PRIVATE KEY` or `PRIVATE KEY`.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(malformed)?;
            match block.label.as_str() {
                "RSA PRIVATE KEY" => {
                    return Self::rsa(
                        &rsa::RsaPrivateKey::from_pkcs1_der(&block.contents).map_err(malformed)?,
                    );
                }
                "EC PRIVATE KEY" => return Self::ec(&pkcs8_of_sec1(&block.contents)?),
                "PRIVATE KEY" => {
                    return match rsa::RsaPrivateKey::from_pkcs8_der(&block.contents) {
                        Ok(key) => Self::rsa(&key),
                        Err(_) => Self::ec(&block.contents),
                    };
                }
                // `EC PARAMETERS` may come first.
                _ => {}
            }
        }
        Err(KeyError::Missing)
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The compact form of `claims` under this key.
    pub fn sign(&self, claims: &impl serde::Serialize) -> Result<String, KeyError> {
        let header = jsonwebtoken::Header {
            typ: None,
            kid: Some(self.public.id.clone()),
            ..jsonwebtoken::Header::new(self.algorithm)
        };
        jsonwebtoken::encode(&header, claims, &self.key).map_err(KeyError::Sign)
    }

    fn rsa(key: &rsa::RsaPrivateKey) -> Result<Self, KeyError> {
        let public = key.to_public_key().to_public_key_der().map_err(malformed)?;
        let private = key.to_pkcs1_der().map_err(malformed)?;
        Ok(Self {
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_der(private.as_bytes()),
            public: PublicKey::from_spki(public.as_bytes())?,
        })
    }

    fn ec(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        let curves = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
        ];
        for (curve, algorithm) in curves {
            if let Ok(pair) = KeyPair::from_pkcs8_der_and_sign_algo(&der, curve) {
                return Ok(Self {
                    algorithm,
                    key: EncodingKey::from_ec_der(pkcs8),
                    public: PublicKey::from_spki(&pair.subject_public_key_info())?,
                });
            }
        }
        Err(KeyError::Unsupported("not RSA, P-256 or P-384".to_owned()))
    }
}

impl PublicKey {
    /// All keys of a file: public keys, certificates, or the public halves of private keys.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(malformed)?;
            match block.label.as_str() {
                "PUBLIC KEY" => keys.push(Self::from_spki(&block.contents)?),
                "RSA PUBLIC KEY" => {
                    let key = rsa::RsaPublicKey::from_pkcs1_der(&block.contents).map_err(malformed)?;
                    keys.push(Self::from_spki(key.to_public_key_der().map_err(malformed)?.as_bytes())?);
                }
                "CERTIFICATE" => {
                    let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(malformed)?;
                    keys.push(Self::from_spki(certificate.public_key().raw)?);
                }
                label if label.ends_with("PRIVATE KEY") => keys.push(SigningKey::from_pem(pem)?.public),
                _ => {}
            }
        }
        if keys.is_empty() { Err(KeyError::Missing) } else { Ok(keys) }
    }

    /// Digest of the public key; what tokens name their key by.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn algorithm_name(&self) -> &'static str {
        name(self.algorithm)
    }

    /// The entry of the key set document.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// `algorithm` is the token's own claim; it must be this key's.
    pub fn verify(&self, signed: &str, signature: &str, algorithm: &str) -> bool {
        algorithm == name(self.algorithm)
            && jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.key, self.algorithm)
                .unwrap_or(false)
    }

    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(malformed)?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(der));
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match info.parsed().map_err(malformed)? {
            x509_parser::public_key::PublicKey::RSA(rsa) => {
                let modulus = without_leading_zeros(rsa.modulus);
                let exponent = without_leading_zeros(rsa.exponent);
                let document = json!({
                    "use": "sig", "kty": "RSA", "kid": id, "alg": "RS256",
                    "n": encode(modulus), "e": encode(exponent),
                });
                let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
                Ok(Self { id, algorithm: Algorithm::RS256, key, document })
            }
            x509_parser::public_key::PublicKey::EC(point) => {
                let (algorithm, curve, size) = match point.key_size() {
                    256 => (Algorithm::ES256, "P-256", 32),
                    384 => (Algorithm::ES384, "P-384", 48),
                    bits => return Err(KeyError::Unsupported(format!("a curve of {bits} bits"))),
                };
                let Some((x, y)) = point.data().get(1..).and_then(|both| both.split_at_checked(size)) else {
                    return Err(KeyError::Malformed("short curve point".to_owned()));
                };
                let (x, y) = (encode(x), encode(y));
                let key = DecodingKey::from_ec_components(&x, &y).map_err(malformed)?;
                let document = json!({
                    "use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": name(algorithm), "x": x, "y": y,
                });
                Ok(Self { id, algorithm, key, document })
            }
            _ => Err(KeyError::Unsupported("neither RSA nor elliptic curve".to_owned())),
        }
    }
}

fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::ES384 => "ES384",
        _ => "ES256",
    }
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    &bytes[zeros..]
}

fn malformed(error: impl fmt::Display) -> KeyError {
    KeyError::Malformed(error.to_string())
}

/// Wraps a bare elliptic curve key in the envelope that names its curve.
fn pkcs8_of_sec1(sec1: &[u8]) -> Result<Vec<u8>, KeyError> {
    const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
    let curve = if contains(sec1, P256) {
        P256
    } else if contains(sec1, P384) {
        P384
    } else {
        return Err(KeyError::Unsupported("a curve other than P-256 and P-384".to_owned()));
    };
    let algorithm = der(0x30, &[EC, curve].concat());
    let body = [&[0x02, 0x01, 0x00][..], &algorithm, &der(0x04, sec1)].concat();
    Ok(der(0x30, &body))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// One tagged value; keys are far below 64 KiB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let mut out = match length {
        0..=127 => vec![tag, low],
        128..=255 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `openssl ecparam -name prime256v1 -genkey`.
    const SEC1: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIP0UcW0JURIhKse4ikSNQQHWOW848aewang1loTcXb1OoAoGCCqGSM49\nAwEHoUQDQgAEoGmPyXCJ8gVJe+2BV+46GkLg1f9gJX8uklkPNYq3zExIU9pfby4Q\nLhvvhpcY7XCzRkZbsUi66Q5U2UNnV50dOQ==\n-----END EC PRIVATE KEY-----\n";

    fn check(pem: &str, algorithm: &str) {
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        let token = key.sign(&json!({"sub": "x"})).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        assert!(key.public().verify(signed, signature, algorithm));
        assert!(!key.public().verify(&format!("{signed}x"), signature, algorithm));
        assert!(!key.public().verify(signed, signature, "none"));
        assert_eq!(key.public().document()["alg"], algorithm);
        let read = PublicKey::all_from_pem(pem.as_bytes()).unwrap();
        assert_eq!(read[0].id(), key.public().id());
    }

    #[test]
    fn every_form_of_private_key_signs_and_verifies() {
        check(&KeyPair::generate().unwrap().serialize_pem(), "ES256");
        check(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem(), "ES384");
        check(SEC1, "ES256");
        check(RSA, "RS256");
    }

    const RSA: &str = "\
-----BEGIN RSA PRIVATE KEY-----\n\
MIIEpAIBAAKCAQEAq/f/bbZNz8IscgAJ7uLG6nxmBu7QwhT24JMVtPHuZ7AqMnAL\n\
O4WPKIEDOrJJfhlp1qnniuK3ox4NmVfXD9/viWQpnb9lXykEWfbCj8yrTtsfFhY+\n\
0pXDyc5rg8RtvJix/Uhrm3z0SpeJWQJeYtm50dYK7cNi7BfpEE878Y+532b9m5vR\n\
+9auo/uZ0wOnq/A0MiXWRB+g3GXWefrPnb3qusLrj8pqR1jjDlYCUoGIyTgMgbcQ\n\
4TDjgfkPLYgHKLJcDMV1kSV2jUo0/1Aj/uwZEe2alreKecQ3QF4/wDxVAOllLXMN\n\
HrYjWgZEXuCKH8sa5pv8VmE2z8TSu1JdKBSwyQIDAQABAoIBABfNtqIJk4C4CG3p\n\
OnbCFjWb7YV1JhlPTJLuWRlYSZ85n8Wmg6+D/7pkDT3hMtINE3zevMmZM0EVZl18\n\
7qxoW2BBqI8I0K/Y3hzTzr+X3XiHVSi6AI0mpNi4xWISXPw3iJ+eGCMIK0pt6lmT\n\
Pdxh9dopTg72Nimm76BNz2bS9bAJ98xRgx3JOVmg/wFn6bEV+yLwKqTO0sW49Mau\n\
OFqeaeA1YJF1cnGWBhnfIXJeD3NYut/wcrBDX221dZmyNEnJMAr/kn43aYcc5FeT\n\
AsLH0iNrhKbYVITZ5AoZ3xdAeMp1W5zKdyNpyO7+7AtAcmgdidf+DrZbS+0Hfisl\n\
OyvQWncCgYEA3u+Gk9UK5c8Q8cjQ3ixXg5Q15u8jtEPoXdZeWHjdcHl15C5plnN8\n\
mPk6KNSZvRAQ9DoC6qBb3jbiUSNgi7PWSy7FeDHBS26+spq9cdf9tzA/4r8IWQOv\n\
l1oh/6cQ0CYQWGGT3G1ubKQL8T6lRH/I564DX8eeXe2a7Wf91j1S6t8CgYEAxXlZ\n\
K7cecBGt3b7ouGWhAjQ3M+wIrW/81EtsSt77W4UQjyN2ay+a/x5Jtm2fRl7/ft66\n\
uJyTDOkVRCNN0eU4IAtf95Cx2hWLgrflwLSbz+tsnKuXOVRfwAAH+ycb6XZH4g13\n\
tWM2AoRCAMY5KkOErXTK78R6Zdk4WmSwP32EAVcCgYEA0pdJdVSGWtfjlcKxK26P\n\
rMfQszmrbJnJYvshXEmwRJM3/jipnWmyhX7IpdFO+P24RjyWjLS2k48c8rCMfut+\n\
vr6L4yJ9CZivo1/xHR1/mhCGCNeUNyH4OOz3uNxEUZvjTNnAJzVoXlAIx/b5f1+G\n\
lPQYU93ph6jv9NuLOVnsfdkCgYEAtlOqb2Bt7A+Gtryz5r1/AafwaDJAeNJzYBgb\n\
bq2e6wtbFK4rgh+8Pl1ateNVMgY4ZI2FXTrD0yHKDtWB3pCDV6LpAo1IiRFndFQS\n\
//BCBKFb8PPFdptepMnilJOxg8c/64l/w6xMi9pNjqV21nzsnbK+RM7mK+95xow8\n\
5wIexZUCgYBM/M18iDCQ8PIii3ECY3InmdJPRUs3bfWhybA8zIAi59aZhXHc1bSL\n\
t2GPmTyloak/nXwD0quwLn7faPI4xzgviLs7vqX7ICbrsvW1MicxIZWivjq3IsBE\n\
3VYlHPnNpRIFv8RNepcyExpcW2hz69N0ggn1BirEcO+6Js+WtvkBJA==\n\
-----END RSA PRIVATE KEY-----\n";
}
