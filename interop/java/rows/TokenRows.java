import com.nimbusds.jose.JOSEObjectType;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSHeader;
import com.nimbusds.jose.JWSSigner;
import com.nimbusds.jose.crypto.ECDSASigner;
import com.nimbusds.jose.crypto.MACSigner;
import com.nimbusds.jose.crypto.RSASSASigner;
import com.nimbusds.jose.jwk.Curve;
import com.nimbusds.jose.jwk.ECKey;
import com.nimbusds.jose.jwk.JWK;
import com.nimbusds.jose.jwk.JWKSet;
import com.nimbusds.jose.jwk.KeyUse;
import com.nimbusds.jose.jwk.RSAKey;
import com.nimbusds.jose.jwk.gen.ECKeyGenerator;
import com.nimbusds.jose.jwk.gen.RSAKeyGenerator;
import com.nimbusds.jose.jwk.source.ImmutableJWKSet;
import com.nimbusds.jose.proc.JWSVerificationKeySelector;
import com.nimbusds.jose.proc.SecurityContext;
import com.nimbusds.jwt.JWTClaimsSet;
import com.nimbusds.jwt.PlainJWT;
import com.nimbusds.jwt.SignedJWT;
import com.nimbusds.jwt.proc.DefaultJWTClaimsVerifier;
import com.nimbusds.jwt.proc.DefaultJWTProcessor;
import io.spiffe.bundle.jwtbundle.JwtBundle;
import io.spiffe.spiffeid.TrustDomain;
import io.spiffe.svid.jwtsvid.JwtSvid;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;

/** Our tokens verified by java-spiffe and nimbus, and nimbus' tokens verified by our validator. */
final class TokenRows {
    static final TrustDomain TRUST_DOMAIN = TrustDomain.parse(Harness.DOMAIN);

    static void run(Harness.Driver driver) throws Exception {
        ours(driver);
        theirs(driver);
    }

    private static void ours(Harness.Driver driver) throws Exception {
        driver.run("issuer", "issuer", "tokens", "trust_domain", Harness.DOMAIN);
        driver.allAlgorithms("tokens");
        var keys = driver.run("keys", "issuer", "tokens");
        var kids = new TreeSet<>(Harness.texts(keys, "kids"));
        for (String form : List.of("jwks", "spiffe_bundle")) {
            byte[] bytes = Harness.text(keys, form).getBytes(StandardCharsets.UTF_8);
            Harness.row("java-bundle-" + form, "java-spiffe reads our keys", () -> {
                var read = JwtBundle.parse(TRUST_DOMAIN, bytes).getJwtAuthorities().keySet();
                Harness.equal("keys", new TreeSet<>(read), kids);
            });
            Harness.row("java-jwkset-" + form, "nimbus reads our keys", () -> {
                var read = JWKSet.parse(new String(bytes, StandardCharsets.UTF_8)).getKeys();
                Harness.equal("keys", read.stream().map(JWK::getKeyID).collect(Collectors.toCollection(TreeSet::new)), kids);
            });
        }
        var jwks = Harness.text(keys, "jwks");
        var bundle = JwtBundle.parse(TRUST_DOMAIN, jwks.getBytes(StandardCharsets.UTF_8));
        var processor = processor(JWKSet.parse(jwks));
        for (var entry : Harness.cases()) {
            String token = driver.token("tokens", Harness.WEB, entry.spec());
            Harness.row("java-token-" + entry.name(), "our result and java-spiffe's result on our token", () -> {
                Harness.equal("our reason", Harness.text(driver.validate(token, "jwks", jwks), "rejected"), entry.rejected());
                if (entry.acceptedBy("java-spiffe")) {
                    var svid = JwtSvid.parseAndValidate(token, bundle, Set.of(Harness.AUDIENCE));
                    Harness.equal("ID", svid.getSpiffeId().toString(), entry.id());
                } else {
                    Harness.fails(() -> JwtSvid.parseAndValidate(token, bundle, Set.of(Harness.AUDIENCE)).getSpiffeId());
                }
            });
            Harness.row("java-nimbus-" + entry.name(), "nimbus' result on our token", () -> {
                if (entry.acceptedBy("nimbus")) {
                    Harness.equal("ID", processor.process(token, null).getSubject(), entry.id());
                } else {
                    Harness.fails(() -> processor.process(token, null));
                }
            });
        }
    }

    /** Configured for JWT-SVIDs: nine algorithms, an audience, the required claims. */
    private static DefaultJWTProcessor<SecurityContext> processor(JWKSet keys) {
        var algorithms = Harness.ALGORITHMS.stream().map(JWSAlgorithm::parse).collect(Collectors.toSet());
        var claims = new DefaultJWTClaimsVerifier<>(Harness.AUDIENCE, null, Set.of("sub", "exp"));
        claims.setMaxClockSkew(10);
        var processor = new DefaultJWTProcessor<>();
        processor.setJWSKeySelector(new JWSVerificationKeySelector<>(algorithms, new ImmutableJWKSet<>(keys)));
        processor.setJWTClaimsSetVerifier(claims);
        return processor;
    }

    private static final Map<String, Curve> CURVES =
            Map.of("ES256", Curve.P_256, "ES384", Curve.P_384, "ES512", Curve.P_521);

    private static JWSSigner signer(JWK key) throws Exception {
        return key instanceof ECKey ec ? new ECDSASigner(ec) : new RSASSASigner((RSAKey) key);
    }

    /** The claims of a valid token with these changes; a null removes a claim. */
    static JWTClaimsSet claims(Map<String, Object> changes) {
        long now = Instant.now().getEpochSecond();
        Map<String, Object> all = new LinkedHashMap<>();
        all.put("sub", Harness.WEB);
        all.put("aud", List.of(Harness.AUDIENCE));
        all.put("iat", now);
        all.put("exp", now + 300);
        all.putAll(changes);
        var claims = new JWTClaimsSet.Builder();
        all.forEach((name, value) -> {
            if (value != null) {
                claims.claim(name, value);
            }
        });
        return claims.build();
    }

    static String sign(String algorithm, String kid, JWSSigner signer, JWTClaimsSet claims) throws Exception {
        var header = new JWSHeader.Builder(JWSAlgorithm.parse(algorithm)).keyID(kid).type(JOSEObjectType.JWT);
        return sign(header.build(), signer, claims);
    }

    private static String sign(JWSHeader header, JWSSigner signer, JWTClaimsSet claims) throws Exception {
        var token = new SignedJWT(header, claims);
        token.sign(signer);
        return token.serialize();
    }

    private static void theirs(Harness.Driver driver) throws Exception {
        Map<String, JWSSigner> signers = new HashMap<>();
        List<JWK> plain = new ArrayList<>();
        List<JWK> labelled = new ArrayList<>();
        var rsa = new RSAKeyGenerator(2048).generate();
        for (String algorithm : Harness.ALGORITHMS) {
            Curve curve = CURVES.get(algorithm);
            String kid = "kid-" + algorithm;
            JWK key = curve == null
                    ? new RSAKey.Builder(rsa).keyID(kid).build()
                    : new ECKeyGenerator(curve).keyID(kid).generate();
            signers.put(algorithm, signer(key));
            plain.add(key.toPublicJWK());
            labelled.add(key instanceof ECKey ec
                    ? new ECKey.Builder(ec).keyUse(new KeyUse("jwt-svid")).build().toPublicJWK()
                    : new RSAKey.Builder((RSAKey) key).keyUse(new KeyUse("jwt-svid")).build().toPublicJWK());
        }
        String jwks = new JWKSet(plain).toString();
        String spiffe = new JWKSet(labelled).toString();
        for (String algorithm : Harness.ALGORITHMS) {
            String token = sign(algorithm, "kid-" + algorithm, signers.get(algorithm), claims(Map.of()));
            Map.of("jwks", jwks, "spiffe_bundle", spiffe).forEach((form, keys) ->
                    Harness.row("java-signed-" + form + "-" + algorithm, "our validator accepts nimbus' token with nimbus' JWK", () -> {
                        var answer = driver.validate(token, form, keys);
                        Harness.equal("ID", Harness.text(answer, "id"), Harness.WEB);
                        Harness.equal("number of keys", answer.get("keys").getAsInt(), Harness.ALGORITHMS.size());
                    }));
        }

        long now = Instant.now().getEpochSecond();
        JWSSigner es256 = signers.get("ES256");
        JWSSigner other = signer(new ECKeyGenerator(Curve.P_256).generate());
        var otherKey = new ECKeyGenerator(Curve.P_256).keyID("kid-ES256").generate();
        Map<String, JWTClaimsSet> good = new LinkedHashMap<>();
        good.put("aud-string", claims(Map.of("aud", Harness.AUDIENCE)));
        good.put("aud-list", claims(Map.of("aud", List.of("other", Harness.AUDIENCE))));
        good.put("nbf-past", claims(Map.of("nbf", now - 60)));
        good.put("unicode-claim", claims(Map.of("name", "日本語 <&>")));
        Map<String, Object> withoutIat = new HashMap<>();
        withoutIat.put("iat", null);
        good.put("without-iat", claims(withoutIat));
        good.forEach((name, claims) ->
                Harness.row("java-accepted-" + name, "our validator accepts nimbus' token", () -> {
                    String token = sign("ES256", "kid-ES256", es256, claims);
                    Harness.equal("ID", Harness.text(driver.validate(token, "jwks", jwks), "id"), Harness.WEB);
                }));

        var header = new JWSHeader.Builder(JWSAlgorithm.ES256).keyID("kid-ES256");
        JWTClaimsSet valid = claims(Map.of());
        Map<String, Object> withoutExp = new HashMap<>();
        withoutExp.put("exp", null);
        String[][] hostile = {
            {"expired", sign("ES256", "kid-ES256", es256, claims(Map.of("exp", now - 60))), "expired"},
            {"not-yet-valid", sign("ES256", "kid-ES256", es256, claims(Map.of("nbf", now + 60))), "not-yet-valid"},
            {"other-audience", sign("ES256", "kid-ES256", es256, claims(Map.of("aud", "other"))), "audience"},
            {"without-expiry", sign("ES256", "kid-ES256", es256, claims(withoutExp)), "claims"},
            {"other-domain", sign("ES256", "kid-ES256", es256, claims(Map.of("sub", "spiffe://example.com/web"))), "trust-domain-unknown"},
            {"forged", sign("ES256", "kid-ES256", other, valid), "signature"},
            {"key-of-another-curve", sign("ES256", "kid-ES384", es256, valid), "key-unfit"},
            {"key-of-another-type", sign("RS256", "kid-ES256", signers.get("RS256"), valid), "key-unfit"},
            {"unknown-key", sign("ES256", "unknown", es256, valid), "key-unknown"},
            {"none", new PlainJWT(valid).serialize(), "malformed-token"},
            {"HS256-by-public-keys", sign("HS256", "kid-ES256", new MACSigner(jwks), valid), "algorithm"},
            {"embedded-key", sign(header.type(JOSEObjectType.JWT).jwk(otherKey.toPublicJWK()).build(), signer(otherKey), valid), "header"},
            {"typ-access-token", sign(header.jwk(null).type(new JOSEObjectType("at+jwt")).build(), es256, valid), "header"},
        };
        for (String[] one : hostile) {
            Harness.row("java-hostile-" + one[0], "our validator rejects nimbus' token", () ->
                    Harness.equal("reason", Harness.text(driver.validate(one[1], "jwks", jwks), "rejected"), one[2]));
        }
    }

    private TokenRows() {}
}
