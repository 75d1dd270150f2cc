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

;; Causal consistency. Elle looks for nothing where it is asked for `:causal`; these are what comes nearest: with no other order of
;; values than that what was there first comes first, and with the order that each session sees. Where two sites write apart, that
;; order is no cause, and a read that misses one of the two (`:G-single-process`) breaks nothing.
(def promised {:consistency-models [:strong-session-read-committed :causal-cerone]})
(doseq [[workload session] [["register" luc/process] ["causal" luc/causal-session]]
        [order more] [["" {:anomalies [:G-single-process]}] [", values in the order of sessions" {:sequential-keys? true}]]
        :let [txns (vec (luc/single (luc/txns workload ops session)))]
        :when (seq txns)]
  (said (str "rw-register, " workload order) (rw/check (merge promised more) (h/history txns {:dense-indices? true}))))

(shutdown-agents)
(System/exit (if (zero? @broken) 0 1))
