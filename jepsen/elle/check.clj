;; Has Jepsen's and Elle's own checkers judge a history of `jepsen run` (docs/jepsen.md, "The original checkers").
;; Ends with 1 if they find broken what LUC promises.
(require '[luc] '[jepsen.history :as h] '[jepsen.checker :as checker] '[elle.rw-register :as rw])

(def ops (luc/load-ops (or (first *command-line-args*) "target/jepsen/history.edn")))
(def broken (atom 0))

(defn said [what result]
  ;; A search that gave up is no pass.
  (when-not (true? (:valid? result)) (swap! broken inc))
  (println what (pr-str (select-keys result [:valid? :count :ok-count :fail-count :info-count :attempt-count :stable-count :lost-count
                                             :lost :unexpected :never-read-count :anomaly-types]))))

(let [all (h/history ops {:have-indices? true :dense-indices? true})]
  (h/ensure-pair-index all)
  (said "stats" (checker/check (checker/stats) {} all {})))
(said "set-full" (checker/check (checker/set-full) {} (h/history (luc/set-ops ops)) {}))
(doseq [site (distinct (map :site (filter #(= :read-final (:f %)) ops)))
        :let [final (luc/set-ops ops {:final true :site site})]
        :when (some #(and (= :read (:f %)) (= :ok (:type %))) final)]
  (said (str "set, at " site " in the end") (checker/check (checker/set) {} (h/history final) {})))

;; Causal consistency. Elle looks for nothing where it is asked for `:causal`; these are what comes nearest, without an order of
;; values and with the one that each session sees.
(def promised {:consistency-models [:strong-session-read-committed :causal-cerone] :anomalies [:G-single-process]})
(doseq [[workload session] [["register" luc/process] ["causal" luc/causal-session]]
        [order keys] [["" {}] [", values in the order of sessions" {:sequential-keys? true}]]
        :let [txns (vec (luc/single (luc/txns workload ops session)))]
        :when (seq txns)]
  (said (str "rw-register, " workload order) (rw/check (merge promised keys) (h/history txns {:dense-indices? true}))))

(shutdown-agents)
(System/exit (if (zero? @broken) 0 1))
